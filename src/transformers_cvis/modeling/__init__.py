# SPDX-License-Identifier: Apache-2.0
"""Configurations and models.

Map of the folder, from the ground up::

    layers/           attention, mask logits, position embeddings, matching of queries, parameters of query groups
    losses/           matching of queries to objects, and the losses of every system
    outputs.py        what models return, and the predictions of one layer
    frame_detector/   Mask2Former on single frames: backbone, pixel decoder, masked-attention decoder; a frame becomes
                      queries in `FrameDetector.forward`
    modeling_base.py  the base of all models: initialisation, loading, kernels, attention implementation
    video_model.py    `VideoModelMixin`: checks of inputs and states, videos of different sizes, streams
    clip_detector/    family "the detector is the model": queries read all frames of a clip; windows of long videos
    video_head/       family "detector and video head": video queries read the frame queries of a clip or video
    tasks/            learning task by task: `TaskLearningMixin.add_task`, groups of queries, task adapters
    vita/ genvis/ hvpl/ minvis/ spvis/ mask2former_vis/ crisp/
                      the systems: each holds only what differs from its family
    auto.py           `AutoModelForVideoInstanceSegmentation`, which finds the system of a checkpoint

Glossary:

- task: classes that are learnt together; task 0 is the base, each later task continues `config.id2label`.
- query group: the queries of one task, with their positions and mask head; groups never attend to each other.
- prompt: a learned query of a later task.
- adapter: the weights that one later task adds, saved by themselves.
- revision: a branch or tag of a Hub repository; `main` holds the base, each `task-N` the adapters up to that task.
- stage: where groups of queries live: the frame stage (detector) and, with a video head, the video stage.

Shapes are written `(B, T, F, C)`. A letter has one meaning in the whole folder; a size without a letter is spelt out:

==== ===================================================================================
B    videos of a batch
T    frames of a clip
N    images, or other independent elements of a batch
Q    queries that predict: video queries, or those of a detector that stands alone
F    frame queries of one frame, where a video head reads them
P    queries of one group
C    channels
K    classes; class logits have K + 1, no-object last
L    last layers of the frame decoder, whose queries train a video head
M    objects of the labels
S    positions that queries read: pixels of a map, or the tokens of one or all levels
H, W height and width of the network's input, in pixels
h, w height and width of a map; of mask features and mask logits `H / 4` and `W / 4`
==== ===================================================================================
"""
