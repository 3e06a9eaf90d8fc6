"""Signatures, provenance and bills of materials of images: made, attached and verified. Whom to trust comes from elsewhere."""
