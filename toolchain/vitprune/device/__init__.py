"""Engines for devices that build their own: a self-contained package, what it does there, and bringing the results back.

Host side: `preparing`, `package`, `remote`, `collect`, put together by `build`. Device side, numpy and the standard library until
a runtime is needed: `entry` (shipped as run.py), `driver`, `job`, `timing`.
"""
