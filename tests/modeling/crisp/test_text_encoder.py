# SPDX-License-Identifier: Apache-2.0
"""Class names to prompts."""

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from transformers_cvis.modeling.crisp import ClassTextEncoder

NAMES = ["dog", "giant_panda", "cat"]


@pytest.fixture(scope="module")
def encoder() -> ClassTextEncoder:
    return ClassTextEncoder.random(hidden_size=32, projection_dim=48)


def class_tokens(count=3):
    return torch.randn(count, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()


def test_prompts_equal_the_text_model_with_the_token_at_position_one(encoder):
    tokens = class_tokens()
    prompts = encoder.encode(NAMES, tokens, width=16)
    for name, token, prompt in zip(NAMES, tokens, prompts, strict=True):
        ids = encoder.tokenizer(f"X {name}.", padding="max_length", max_length=77, return_tensors="pt")["input_ids"]
        assert encoder.tokenizer.decode(ids[0, 1]).strip() == "x"
        text, model = encoder.model.text_model, encoder.model
        embedded = text.embeddings.token_embedding(ids)
        embedded = torch.cat([embedded[:, :1], token[None, None], embedded[:, 2:]], dim=1)
        states = text.embeddings(inputs_embeds=embedded)
        mask = torch.full((77, 77), -torch.inf).triu(1)[None, None]
        states = text.final_layer_norm(text.encoder(inputs_embeds=states, attention_mask=mask).last_hidden_state)
        end = ids[0].tolist().index(model.config.eos_token_id)
        embedding = model.text_projection(states[0, end])
        torch.testing.assert_close(prompt, embedding.view(16, 3).mean(1), rtol=1e-4, atol=1e-5)


def test_a_prompt_depends_on_its_own_name_and_token_alone(encoder):
    tokens = class_tokens()
    together = encoder.encode(NAMES, tokens, width=16)
    for index, name in enumerate(NAMES):
        alone = encoder.encode([name], tokens[index : index + 1], width=16)
        torch.testing.assert_close(alone[0], together[index], rtol=1e-4, atol=1e-5)
    same_token = encoder.encode(NAMES, tokens[:1].expand(3, -1), width=16)
    assert (same_token[0] - same_token[2]).abs().max() > 1e-3
    assert (same_token[1] - together[1]).abs().max() > 1e-3


def test_gradients_pass_through_the_frozen_model(encoder):
    tokens = class_tokens()
    encoder.encode(NAMES, tokens, width=16).square().sum().backward()
    assert tokens.grad.isfinite().all()
    assert tokens.grad.any(dim=1).all()
    assert not any(parameter.requires_grad for parameter in encoder.model.parameters())
    assert not encoder.model.get_input_embeddings()._forward_hooks


def test_random_encoders_are_always_the_same():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first, second = (ClassTextEncoder.random(32, 48) for _ in range(2))
    assert torch.equal(torch.rand(1), expected)
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name]), name
    ids = first.tokenizer(["X Ünïcode 7!"])["input_ids"][0]
    assert len(set(ids)) > 8
    assert len(first.tokenizer) == 514


def test_checkpoints_of_clip(encoder, tmp_path):
    encoder.model.save_pretrained(tmp_path)
    encoder.tokenizer.save_pretrained(tmp_path)
    loaded = ClassTextEncoder.from_pretrained(str(tmp_path))
    tokens = class_tokens()
    assert torch.equal(loaded.encode(NAMES, tokens, width=16), encoder.encode(NAMES, tokens, width=16))
    assert not loaded.model.training
    assert loaded.hidden_size == 32
    with pytest.raises(OSError, match=r"text encoder '.*nothing' \(`config.text_encoder`\) cannot be loaded"):
        ClassTextEncoder.from_pretrained(str(tmp_path / "nothing"))


def test_bfloat16_class_tokens(encoder):
    prompts = encoder.encode(NAMES, class_tokens().bfloat16(), width=16)
    assert prompts.dtype == torch.bfloat16
    assert prompts.isfinite().all()


def test_wrong_widths_and_long_names_are_refused(encoder):
    with pytest.raises(ValueError, match="embeddings of 48 channels, which cannot be averaged to prompts of 32"):
        encoder.encode(NAMES, class_tokens(), width=32)
    with pytest.raises(ValueError, match="class name 'a{90}' takes 94 tokens, but the text encoder reads at most 77"):
        encoder.encode(["dog", "a" * 90], class_tokens(2), width=16)


def test_a_text_model_of_other_widths():
    vocabulary = {"<|startoftext|>": 0, "<|endoftext|>": 1, **{c: 2 + i for i, c in enumerate("xdogcat._")}}
    vocabulary |= {f"{c}</w>": 20 + i for i, c in enumerate("xdogcat._")}
    config = CLIPTextConfig(
        vocab_size=40, hidden_size=24, intermediate_size=8, projection_dim=16, num_hidden_layers=1,
        num_attention_heads=2, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    model, tokenizer = CLIPTextModelWithProjection(config), CLIPTokenizer(vocab=vocabulary, merges=[])
    encoder = ClassTextEncoder(model.train(), tokenizer)
    assert encoder.hidden_size == 24
    assert not encoder.model.training
    tokens = torch.randn(2, 24)
    whole = encoder.encode(["dog", "cat"], tokens, width=16)
    torch.testing.assert_close(encoder.encode(["dog", "cat"], tokens, width=8), whole.view(2, 8, 2).mean(2))
