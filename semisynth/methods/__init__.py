"""The methods, one file a paper; the command line knows each by its class's name in lower case."""

from semisynth.methods.fixmatch import FixMatch as FixMatch
from semisynth.methods.gan import GAN as GAN
from semisynth.methods.meanteacher import MeanTeacher as MeanTeacher
from semisynth.methods.mpssl import MPSSL as MPSSL
from semisynth.methods.mpssl import SCR as SCR
from semisynth.methods.supervised import Supervised as Supervised
