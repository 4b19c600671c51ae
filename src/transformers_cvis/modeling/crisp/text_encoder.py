# SPDX-License-Identifier: Apache-2.0
"""Class names to prompts, by the text model of CLIP: needed in training alone, no part of the model that is saved."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import (
    AutoTokenizer,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerBase,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

TEMPLATE = "X {}."
TOKEN_POSITION = 1  # of the "X", behind the start of the text
RANDOM = "random"


class ClassTextEncoder:
    """A frozen CLIP text model that reads "X dog.", with a learnable embedding in place of the "X".

    It is no `nn.Module`, so that a model which holds it neither trains nor saves it.

    Args:
        model: in inference mode and without gradients of its own from now on; those of the class tokens pass through.
        tokenizer: that of the model.
    """

    def __init__(self, model: CLIPTextModelWithProjection, tokenizer: PreTrainedTokenizerBase):
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer

    @classmethod
    def from_pretrained(cls, name: str) -> "ClassTextEncoder":
        """The text model of a CLIP checkpoint of the Hub or of a folder, and its tokenizer.

        Raises:
            OSError: there is none, or it cannot be fetched.
        """
        try:
            return cls(CLIPTextModelWithProjection.from_pretrained(name), AutoTokenizer.from_pretrained(name))
        except OSError as error:
            raise OSError(
                f"The text encoder {name!r} (`config.text_encoder`) cannot be loaded: {error} On a machine without a "
                "network, give the folder of a CLIP checkpoint."
            ) from error

    @classmethod
    def random(cls, hidden_size: int, projection_dim: int) -> "ClassTextEncoder":
        """A small text model with random weights, always the same, and a tokenizer that spells words byte by byte.

        It tells class names apart, but knows nothing of them.

        Args:
            hidden_size: width of its token embeddings.
            projection_dim: width of the embeddings of whole texts.
        """
        characters = list(bytes_to_unicode().values())
        words = [*characters, *(f"{character}</w>" for character in characters), "<|startoftext|>", "<|endoftext|>"]
        vocabulary = {word: index for index, word in enumerate(words)}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = CLIPTextModelWithProjection(
                CLIPTextConfig(
                    vocab_size=len(vocabulary),
                    hidden_size=hidden_size,
                    intermediate_size=2 * hidden_size,
                    projection_dim=projection_dim,
                    num_hidden_layers=2,
                    num_attention_heads=1,
                    bos_token_id=vocabulary["<|startoftext|>"],
                    eos_token_id=vocabulary["<|endoftext|>"],
                    pad_token_id=vocabulary["<|endoftext|>"],
                )
            )
        return cls(model, CLIPTokenizer(vocab=vocabulary, merges=[]))

    @property
    def hidden_size(self) -> int:
        """Width of a token embedding."""
        return self.model.config.hidden_size

    def encode(self, class_names: Sequence[str], class_tokens: Tensor, width: int) -> Tensor:
        """Prompts of classes.

        Args:
            class_names: as in the data set, underscores included.
            class_tokens: `(classes, hidden_size)`, what stands before each name.
            width: channels of the prompts. Neighbouring channels of CLIP's embedding are averaged to as many.

        Returns:
            `(classes, width)`, differentiable in `class_tokens`, which keep their dtype and device.

        Raises:
            ValueError: CLIP's embedding is no multiple of `width` wide, or a name has too many words for it.
        """
        projection_dim = self.model.config.projection_dim
        if projection_dim % width:
            raise ValueError(
                f"The text encoder gives embeddings of {projection_dim} channels, which cannot be averaged to prompts "
                f"of {width}, the width of the queries (`config.hidden_dim`): it must be a multiple."
            )
        self.model.to(class_tokens.device)
        token_ids = self._token_ids(class_names).to(class_tokens.device)
        dtype = self.model.dtype

        def with_class_tokens(module, inputs, embeddings: Tensor) -> Tensor:
            before, after = embeddings[:, :TOKEN_POSITION], embeddings[:, TOKEN_POSITION + 1 :]
            return torch.cat([before, class_tokens.to(dtype)[:, None], after], dim=1)

        hook = self.model.get_input_embeddings().register_forward_hook(with_class_tokens)
        try:
            with torch.autocast(class_tokens.device.type, enabled=False):
                embeddings = self.model(input_ids=token_ids).text_embeds
        finally:
            hook.remove()
        return embeddings.unflatten(1, (width, -1)).mean(dim=2).to(class_tokens.dtype)

    def _token_ids(self, class_names: Sequence[str]) -> Tensor:
        """`(classes, length)`. What fills up short texts stands behind their ends, where no causal model looks."""
        texts = [TEMPLATE.format(name) for name in class_names]
        tokens = self.tokenizer(texts, padding=True, return_tensors="pt")["input_ids"]
        longest = self.model.config.max_position_embeddings
        if tokens.shape[1] > longest:
            name = max(class_names, key=len)
            raise ValueError(
                f"The class name {name!r} takes {tokens.shape[1]} tokens, but the text encoder reads {longest}: give "
                "the class a shorter name."
            )
        return tokens


__all__ = ["ClassTextEncoder"]
