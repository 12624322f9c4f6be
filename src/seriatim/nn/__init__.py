"""Small layers that mixers and backbones share."""
