"""The data sets that a configuration can name, each a function that returns a `Source`.

`conf/dataset/` names them here, and the name is part of a run's identity: moving one to another
file makes no other run of it.
"""

from sdnet.data.digits import digits
from sdnet.data.folders import image_folder, image_stream
from sdnet.data.torchvision_sets import cifar10, cifar100, svhn

__all__ = ["cifar10", "cifar100", "digits", "image_folder", "image_stream", "svhn"]
