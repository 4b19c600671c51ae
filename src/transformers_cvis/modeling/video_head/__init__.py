# SPDX-License-Identifier: Apache-2.0
"""Video head: what relates the frame queries of a video, in VITA, GenVIS and HVPL."""
