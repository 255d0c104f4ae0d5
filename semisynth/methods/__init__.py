"""The methods, one file a paper; the command line knows each by its class's name in lower case."""

from semisynth.methods.edm import EDM as EDM
from semisynth.methods.entropy import Entropy as Entropy
from semisynth.methods.fixmatch import FixMatch as FixMatch
from semisynth.methods.flexmatch import FlexMatch as FlexMatch
from semisynth.methods.freematch import FreeMatch as FreeMatch
from semisynth.methods.gan import GAN as GAN
from semisynth.methods.gda import GDA as GDA
from semisynth.methods.iomatch import IOMatch as IOMatch
from semisynth.methods.linearprobe import LinearProbe as LinearProbe
from semisynth.methods.meanteacher import MeanTeacher as MeanTeacher
from semisynth.methods.mgr import MGR as MGR
from semisynth.methods.mpssl import MPSSL as MPSSL
from semisynth.methods.openmatch import OpenMatch as OpenMatch
from semisynth.methods.pretext import Pretext as Pretext
from semisynth.methods.pssl import PSSL as PSSL
from semisynth.methods.rsmatch import RSMatch as RSMatch
from semisynth.methods.scr import SCR as SCR
from semisynth.methods.softmatch import SoftMatch as SoftMatch
from semisynth.methods.supervised import Supervised as Supervised
from semisynth.methods.transport import Transport as Transport
from semisynth.methods.uda import UDA as UDA
from semisynth.methods.vae import VAE as VAE
