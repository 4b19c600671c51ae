# SPDX-License-Identifier: Apache-2.0
"""Video head of VITA, GenVIS and HVPL, which relates the frame queries of a video to each other."""
