"""Models of timm that are no plain ViTs, through `vitprune export`: each must be refused by name, with the reason and what would work.

    python tests/reach/odd.py --store         # all, into recipes/odd_models.json
    python tests/reach/odd.py --only swin     # some, printed

What counts is the command as it is typed: its exit code and the error it shows, or that a bundle was written.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from vitprune.reports.odd_models import failure

RECIPES = Path(__file__).parents[2] / "recipes"
STORED, RECIPE = RECIPES / "odd_models.json", str(RECIPES / "tome_deit_small.yaml")
NAMES = (
    "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "swinv2_cr_tiny_224", "convnext_atto", "convnextv2_atto", "mixer_s32_224",
    "resmlp_12_224", "gmixer_12_224", "gmlp_ti16_224", "cait_xxs24_224", "levit_128s", "poolformer_s12", "xcit_nano_12_p16_224",
    "maxvit_rmlp_pico_rw_256", "coatnet_nano_rw_224", "volo_d1_224", "pit_ti_224", "pvt_v2_b0", "twins_svt_small",
    "crossvit_tiny_240", "coat_tiny", "convit_tiny", "convmixer_768_32", "davit_tiny", "edgenext_xx_small", "efficientformer_l1",
    "efficientformerv2_s0", "efficientvit_b0", "efficientvit_m0", "fastvit_t8", "focalnet_tiny_srf",
    "gcvit_xxtiny", "hiera_tiny_224", "mobilevit_xxs", "mobilevitv2_050", "mvitv2_tiny", "nest_tiny", "nextvit_small", "repvit_m0_9",
    "rdnet_tiny", "samvit_base_patch16_224", "sequencer2d_s", "tiny_vit_5m_224", "tnt_s_patch16_224", "visformer_tiny", "mambaout_femto",
    "caformer_s18", "starnet_s1", "shvit_s1", "swiftformer_xs", "resnet18", "resnetv2_50", "efficientnet_b0", "mobilenetv3_small_050",
    "mobilenetv4_conv_small_035", "regnetx_002", "densenet121", "vgg11", "vit_small_patch16_18x2_224", "vit_dwee_patch16_reg1_gap_256",
    "vit_dpwee_patch16_reg1_gap_256", "csatv2", "inception_v4",
)  # fmt: skip


def attempt(name: str) -> dict[str, Any]:
    """What `vitprune export NAME` answers: its exit code, and the error's code, cause and next step."""
    from vitprune.cli import run

    said = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()):
        exit_code = run(["export", name, "--no-pretrained", "-r", RECIPE, "-o", f"{folder}/bundle", "--json"])
        written = (Path(folder) / "bundle").exists()
    error = json.loads(said.getvalue()).get("error") or {}
    return {"exit_code": exit_code, "written": written} | {
        key: str(error.get(key, "")) for key in ("code", "message", "cause", "next_step")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="part of a name")
    parser.add_argument("--store", type=Path, nargs="?", const=STORED, help="file to store in, and to go on from")
    parser.add_argument("--again", action="store_true", help="also what is stored already")
    args = parser.parse_args()
    import timm

    stored = json.loads(args.store.read_text()) if args.store and args.store.exists() else {"models": {}}
    known = stored["models"] if stored.get("timm") == timm.__version__ and not args.again else {}
    found = {name: known[name] for name in NAMES if name in known}
    for name in (one for one in NAMES if args.only in one and one not in found):
        began = time.process_time()
        found[name] = one = attempt(name)
        print(
            f"{name:32} {time.process_time() - began:5.1f} s  {failure(one) or 'refused'}: {one['code']} {one['cause']}",
            flush=True,
        )
        if args.store:
            args.store.write_text(json.dumps({"timm": timm.__version__, "models": found}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
