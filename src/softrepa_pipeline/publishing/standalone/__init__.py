"""Files of an exported folder: they are copied into it as they are, and import torch and diffusers only."""
