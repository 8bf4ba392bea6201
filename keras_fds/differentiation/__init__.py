"""How a hypergradient is computed: the modes of differentiation."""

from keras_fds.differentiation.choice import choose_mode as choose_mode
from keras_fds.differentiation.forward import Forward
from keras_fds.differentiation.layer_check import hessian_error as hessian_error
from keras_fds.differentiation.layer_check import layer_error as layer_error
from keras_fds.differentiation.mode import Mode as Mode
from keras_fds.differentiation.online import Online as Online
from keras_fds.differentiation.online import OnlineSource as OnlineSource
from keras_fds.differentiation.plain import Plain as Plain
from keras_fds.differentiation.replicas import ONE as ONE
from keras_fds.differentiation.replicas import Replicas as Replicas
from keras_fds.differentiation.reverse import Reverse

__all__ = ["Forward", "Reverse"]
