# SPDX-License-Identifier: Apache-2.0
"""Tests of the conventions of transformers for every video model; part of `CommonTests`."""

import copy
import pickle
from collections import Counter

import pytest
import torch

from tests.support.video_data import loss_of, predictions, video_batch, video_labels
from transformers_cvis.modeling.layers import attention


class ConventionTests:
    """Attention implementations, copies, tuples, hidden states and refused requests.

    Subclasses have `model_class` and `model(**changes)`, see `CommonTests`.
    """

    num_hidden_states = 3
    """Number of hidden states: one per layer, plus the learned queries if they predict as well."""

    @pytest.fixture
    def attention_paths(self, monkeypatch):
        """Count the calls of attention functions by name."""
        counter = Counter()

        def counted(name, function):
            def call(*args, **kwargs):
                counter[name] += 1
                return function(*args, **kwargs)

            return call

        sdpa, eager = torch.nn.functional.scaled_dot_product_attention, attention.eager_attention
        monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted("sdpa", sdpa))
        monkeypatch.setattr(attention, "eager_attention", counted("eager", eager))
        return counter

    @torch.no_grad()
    def test_requested_attention_implementation_runs(self, attention_paths, tmp_path):
        self.model().save_pretrained(tmp_path)
        default = self.model_class.from_pretrained(tmp_path)
        expected = predictions(default(video_batch()))
        assert set(attention_paths) == {"sdpa"}
        attention_paths.clear()
        for implementation in ("sdpa", "eager"):
            loaded = self.model_class.from_pretrained(tmp_path, attn_implementation=implementation)
            switched = self.model_class.from_pretrained(tmp_path)
            switched.set_attn_implementation(implementation)
            for model in (loaded, switched):
                for ours, theirs in zip(predictions(model(video_batch())), expected, strict=True):
                    tolerance = 0 if implementation == "sdpa" else 1e-4
                    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
                assert set(attention_paths) == {implementation}
                attention_paths.clear()
                assert self.backbone_attention(model) == self.backbone_attention(default)

    def backbone_attention(self, model) -> str:
        config = getattr(model.config, "detector_config", model.config)
        return config.backbone_config._attn_implementation

    @torch.no_grad()
    def test_eager_attention_compiles(self):
        torch.compiler.reset()
        eager, compiled = self.model(), self.model()
        for model in (eager, compiled):
            model.set_attn_implementation("eager")
        compiled.compile_clip_step(backend="eager")
        for ours, theirs in zip(predictions(compiled(video_batch(2))), predictions(eager(video_batch(2))), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)

    @torch.no_grad()
    def test_copies_give_the_same_results(self):
        model = self.model()
        expected = predictions(model(video_batch()))
        for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert not copied.training
            assert copied.config.to_dict() == model.config.to_dict()
            for (name, ours), theirs in zip(copied.named_parameters(), model.parameters(), strict=True):
                assert ours.requires_grad == theirs.requires_grad, name
            for ours, theirs in zip(predictions(copied(video_batch())), expected, strict=True):
                assert torch.equal(ours, theirs)

    @torch.no_grad()
    def test_copies_of_outputs_and_states_equal_the_originals(self):
        model = self.model()
        first, second = video_batch().split(2, dim=1)
        output = model(first, output_embeddings=True, output_hidden_states=True)
        for copied in (copy.deepcopy(output), pickle.loads(pickle.dumps(output))):
            assert type(copied) is type(output)
            assert list(copied) == list(output)
            for ours, theirs in zip(predictions(copied), predictions(output), strict=True):
                assert torch.equal(ours, theirs)
            continued = predictions(model(second, state=copied.state))
            for ours, theirs in zip(continued, predictions(model(second, state=output.state)), strict=True):
                assert torch.equal(ours, theirs)

    @torch.no_grad()
    def test_tuples_instead_of_outputs(self):
        model = self.model()
        expected = model(video_batch(), output_embeddings=True)
        found = model(video_batch(), output_embeddings=True, return_dict=False)
        assert type(found) is tuple
        assert len(found) == len(expected.to_tuple()) == len(list(expected))
        assert torch.equal(found[0], expected.class_queries_logits)
        assert torch.equal(found[1], expected.masks_queries_logits)
        model.config.return_dict = False
        assert type(model(video_batch())) is tuple
        assert torch.equal(model(video_batch(), return_dict=True).class_queries_logits, found[0])
        clips = list(model.stream(video_batch(batch_size=1).split(2, dim=1)))
        assert [clip.masks_queries_logits.shape[2] for clip in clips] == [2, 2]
        loss, loss_dict = model.train()(video_batch(), labels=video_labels())
        torch.testing.assert_close(loss, sum(loss_dict.values()))

    @torch.no_grad()
    def test_hidden_states_are_the_queries_of_every_layer(self):
        model = self.model()
        plain = model(video_batch(), output_embeddings=True)
        assert plain.hidden_states is None
        queries = plain.frame_queries[-1] if plain.video_queries is None else plain.video_queries
        output = model(video_batch(), output_hidden_states=True)
        assert type(output.hidden_states) is tuple
        assert len(output.hidden_states) == self.num_hidden_states
        assert all(states.shape == queries.shape for states in output.hidden_states)
        torch.testing.assert_close(output.hidden_states[-1], queries)
        for ours, theirs in zip(predictions(output), predictions(plain), strict=True):
            torch.testing.assert_close(ours, theirs)
        model.config.output_hidden_states = True
        pixel_mask = torch.ones(2, 64, 96)
        pixel_mask[0, 32:] = 0
        smaller = model(video_batch(), pixel_mask=pixel_mask)
        assert all(states.shape == queries.shape for states in smaller.hidden_states)
        assert model(video_batch(), output_hidden_states=False).hidden_states is None
        assert torch.isfinite(loss_of(model))

    def test_attention_weights_are_refused(self):
        with pytest.raises(ValueError, match="`output_attentions=True` is not supported: .*AttentionInterface"):
            self.model()(video_batch(), output_attentions=True)

    def test_pixels_have_no_embeddings(self):
        with pytest.raises(NotImplementedError, match="reads pixels and has no input embeddings"):
            self.model().get_input_embeddings()

    def test_state_of_another_model_is_refused(self):
        model = self.model()
        reason = "`state` must be a .*State, the `state` of the output" if model.is_online else "has no `state`"
        with pytest.raises(ValueError, match=reason):
            model(video_batch(), state=object())
