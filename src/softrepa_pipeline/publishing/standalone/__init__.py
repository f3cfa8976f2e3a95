"""Files of exported folders: they are copied there as they are, and import nothing of this package."""
