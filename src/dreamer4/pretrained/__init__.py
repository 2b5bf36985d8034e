"""Networks whose weights come with packages of others, by which pictures and videos are compared."""

from dreamer4.pretrained.i3d import I3D
from dreamer4.pretrained.lpips import LPIPS


__all__ = ["I3D", "LPIPS"]
