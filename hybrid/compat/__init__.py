"""Other packages' interfaces on top of this one, so that moving over is one changed import."""
