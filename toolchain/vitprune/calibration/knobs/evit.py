"""EViT: one keep rate for all stages."""

from vitprune.calibration.knobs.topk import INTEGER as INTEGER
from vitprune.calibration.knobs.topk import RISING as RISING
from vitprune.calibration.knobs.topk import bounds as bounds
from vitprune.calibration.knobs.topk import settings as settings
