"""ATS with merging: as ATS."""

from vitprune.calibration.knobs.ats import INTEGER as INTEGER
from vitprune.calibration.knobs.ats import RISING as RISING
from vitprune.calibration.knobs.ats import bounds as bounds
from vitprune.calibration.knobs.ats import settings as settings
