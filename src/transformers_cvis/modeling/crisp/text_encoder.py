# SPDX-License-Identifier: Apache-2.0
"""Text encoder of CRISP: the text model of CLIP turns class names into prompts. Only training needs it."""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import (
    AutoTokenizer,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerBase,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

TEMPLATE = "X {}."
TOKEN_POSITION = 1  # of the "X", after the start-of-text token
RANDOM = "random"


class ClassTextEncoder:
    """Frozen CLIP text model that reads "X dog.", with a learnable embedding in place of the "X".

    It is not an `nn.Module`, so a model that holds it neither trains nor saves it.

    Args:
        model: the text model. It is set to evaluation mode and frozen; gradients of the class tokens pass through it.
        tokenizer: the tokenizer of the model.
    """

    def __init__(self, model: CLIPTextModelWithProjection, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer

    @classmethod
    def from_pretrained(cls, name: str) -> "ClassTextEncoder":
        """Load the text model of a CLIP checkpoint and its tokenizer.

        Args:
            name: repository on the Hub, or folder.

        Raises:
            OSError: the checkpoint is not found, or cannot be downloaded.
        """
        try:
            return cls(CLIPTextModelWithProjection.from_pretrained(name), AutoTokenizer.from_pretrained(name))
        except OSError as error:
            raise OSError(
                f"The text encoder {name!r} (`config.text_encoder`) cannot be loaded: {error} Without a network, set "
                "it to the folder of a CLIP checkpoint."
            ) from error

    @classmethod
    def random(cls, hidden_size: int, projection_dim: int) -> "ClassTextEncoder":
        """Build a small text model with random weights from a fixed seed, and a tokenizer that splits words into bytes.

        It distinguishes class names without knowing their meaning.

        Args:
            hidden_size: channels of the token embeddings.
            projection_dim: channels of the embedding of a text.
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
        """Channels of a token embedding."""
        return self.model.config.hidden_size

    def encode(self, class_names: Sequence[str], class_tokens: torch.Tensor, width: int) -> torch.Tensor:
        """Compute the prompts of classes.

        Args:
            class_names: names as in the data set, underscores included.
            class_tokens: `(classes, hidden_size)`, the embedding before each name.
            width: channels of the prompts. Neighbouring channels of CLIP's embedding are averaged to this number.

        Returns:
            `(classes, width)`, with the dtype and device of `class_tokens`, and differentiable in them.

        Raises:
            ValueError: the channels of CLIP's embedding are not a multiple of `width`, or a name has too many tokens.
        """
        projection_dim = self.model.config.projection_dim
        if projection_dim % width:
            raise ValueError(
                f"The text encoder gives embeddings of {projection_dim} channels, which cannot be averaged to prompts "
                f"of {width} channels (`config.hidden_dim`): {projection_dim} is not a multiple of {width}."
            )
        self.model.to(class_tokens.device)
        token_ids = self._token_ids(class_names).to(class_tokens.device)
        dtype = self.model.dtype

        def with_class_tokens(module: nn.Module, inputs: tuple, embeddings: torch.Tensor) -> torch.Tensor:
            before, after = embeddings[:, :TOKEN_POSITION], embeddings[:, TOKEN_POSITION + 1 :]
            return torch.cat([before, class_tokens.to(dtype)[:, None], after], dim=1)

        hook = self.model.get_input_embeddings().register_forward_hook(with_class_tokens)
        try:
            with torch.autocast(class_tokens.device.type, enabled=False):
                embeddings = self.model(input_ids=token_ids).text_embeds
        finally:
            hook.remove()
        return embeddings.unflatten(1, (width, -1)).mean(dim=2).to(class_tokens.dtype)

    def _token_ids(self, class_names: Sequence[str]) -> torch.Tensor:
        """Tokenize the class names, `(classes, length)` long.

        Short texts are padded at the end, where a causal model does not look.
        """
        texts = [TEMPLATE.format(name) for name in class_names]
        tokens = self.tokenizer(texts, padding=True, return_tensors="pt")["input_ids"]
        longest = self.model.config.max_position_embeddings
        if tokens.shape[1] > longest:
            name = max(class_names, key=len)
            raise ValueError(
                f"The class name {name!r} takes {tokens.shape[1]} tokens, but the text encoder reads at most "
                f"{longest}. Give the class a shorter name."
            )
        return tokens


__all__ = ["ClassTextEncoder"]
