"""Static pre-flight of a bundle for a target: what would block a build, what nobody can vouch for, what was really run.

One rule is one function with a stable id (VP401 to VP419) in a file `rules_*.py`; the files are found, not listed.
"""
