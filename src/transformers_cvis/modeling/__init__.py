# SPDX-License-Identifier: Apache-2.0
"""Configurations and models.

Map of the folder, from the ground up::

    layers/               attention, mask logits, position embeddings, matching of queries, parameters of query groups
    losses/               matching of queries to objects, and the losses of every system; map in `losses/__init__.py`
    outputs.py            outputs of models, and the predictions of one layer
    docstrings.py         shared texts of the docstrings of configurations, outputs and `forward`
    configuration_base.py the base of all configurations: classes, unknown keys, `switch()` and `behaviour`
    modeling_base.py      the base of all models: initialisation, loading, freezing, kernels, attention implementation
    video_model.py        `VideoModelMixin`: checks of inputs and states, videos of different sizes, streams
    frame_detector/       Mask2Former on single frames: backbone, pixel decoder, masked-attention decoder
    clip_detector/        family "the detector is the model": queries read all frames of a clip; windows of long videos
    video_head/           family "detector and video head": video queries read the frame queries of a clip or video
    tasks/                learning task by task:
        learning.py         `TaskLearningMixin`: add, switch and remove tasks
        queries.py          groups of queries: parameters, decoding side by side, class heads by task
        adapters.py         `TaskAdapterMixin`: save, load, push and pull task adapters
        adapter_files.py    format of the files of an adapter
        adapter_store.py    record of the adapters of one model
        places.py           paths of the parts of a task in a model
    vita/ genvis/ hvpl/   systems of the family "detector and video head"
    mask2former_vis/ task_clip_detector/ crisp/
                          systems of the family "the detector is the model"; the last two learn task by task
    minvis/ spvis/        systems that track the queries of the frame detector from frame to frame
    auto.py               `AutoModelForVideoInstanceSegmentation` finds the system of a checkpoint; `register_model`

Where to look:

- A frame becomes queries in `FrameDetector.forward` (`frame_detector/modeling_frame_detector.py`), whose layers are in
  `frame_detector/masked_attention_decoder.py`.
- A task is added in `TaskLearningMixin.add_task` (`tasks/learning.py`); the queries that it adds are the
  `TaskQueryGroup` of `tasks/queries.py`.
- The content of a revision is described in `tasks/adapter_files.py`; `push_task_adapter` (`tasks/adapters.py`) pushes
  it.
- The fields of a configuration are in `configuration_<system>.py`, and the values of switches in `docs/switches.md`.
- The fields of a recipe, which trains a model, are in `training/recipe.py`; `transformers-cvis train --fields` lists
  them.
- A new system is a folder with a configuration and a model, which `register_system` (`systems.py`) makes known.

Glossary:

- task: classes that are learnt together; task 0 is the base, each later task continues `config.id2label`.
- query group: the queries of one task, with their positions and mask head; groups never attend to each other.
- prompt: a learned query of a later task.
- adapter: what later tasks add to the base, without the base; the files of `task-N` hold those of tasks 1 to N.
- revision: a branch or tag of a Hub repository; `main` holds the base, each `task-N` the adapters up to that task.
- stage: a part of a model with groups of queries: the frame stage (detector), and the video stage (video head).

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
