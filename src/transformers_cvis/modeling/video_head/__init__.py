"""Video head: what relates the frame queries of a video, in VITA, GenVIS and HVPL."""
