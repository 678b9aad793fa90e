from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from diffusers import (
    AceStepPipeline,
    AutoencoderOobleck,
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.models.transformers.ace_step_transformer import (
    AceStepTransformer1DModel,
)
from diffusers.pipelines.ace_step.modeling_ace_step import AceStepConditionEncoder
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3Model

from inference.engines.audio_diffusers import DiffusersSound, is_available
from inference.errors import WeightsMissing
from inference.media import audio

# diffusers 0.42 builds its audio VAE with torch's older weight_norm.
pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A tiny ACE-Step with random weights, saved as diffusers saves it."""
    torch.set_num_threads(1)  # beside other tests its threads only wait for each other
    torch.manual_seed(0)
    shape = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
    }
    letters = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<|endoftext|>"]
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    vae = AutoencoderOobleck(
        encoder_hidden_size=4,
        downsampling_ratios=[2, 4, 4, 6, 10],
        channel_multiples=[1, 1, 1, 1, 1],
        decoder_channels=4,
        decoder_input_channels=8,
        sampling_rate=48_000,
    )
    pipeline = AceStepPipeline(
        vae=vae,
        text_encoder=Qwen3Model(
            Qwen3Config(
                vocab_size=257,
                num_hidden_layers=1,
                max_position_embeddings=2048,
                **shape,
            )
        ),
        tokenizer=PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="<|endoftext|>"
        ),
        transformer=AceStepTransformer1DModel(
            num_hidden_layers=2,
            in_channels=24,
            audio_acoustic_hidden_dim=8,
            is_turbo=True,
            model_version="turbo",
            **shape,
        ),
        condition_encoder=AceStepConditionEncoder(
            text_hidden_dim=16,
            timbre_hidden_dim=8,
            num_lyric_encoder_hidden_layers=1,
            num_timbre_encoder_hidden_layers=1,
            **shape,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0),
    )
    root = tmp_path_factory.mktemp("weights")
    pipeline.save_pretrained(root / "audio")
    return root


def test_a_pipeline_from_a_folder_makes_the_length_asked_for(weights):
    assert is_available(weights)
    engine = DiffusersSound(weights / "audio", steps=1)
    assert engine.name == "AceStep"
    sound = engine.sound("rain on a tin roof", seconds=2, seed=1)
    assert sound.samples.shape[1] == 2
    assert sound.seconds == pytest.approx(2, abs=0.1)
    assert np.isfinite(sound.samples).all()
    ready = audio.fit(audio.normalise(sound), seconds=81 / 16)
    assert ready.seconds == pytest.approx(81 / 16)


def test_the_seed_decides_the_sound(weights):
    engine = DiffusersSound(weights / "audio", steps=1)
    one, two, other = (
        engine.sound("sea", seconds=0.5, seed=seed).samples for seed in (3, 3, 4)
    )
    assert (one == two).all()
    assert (one != other).any()


def test_a_missing_or_foreign_folder_is_named(tmp_path):
    with pytest.raises(WeightsMissing, match=r"model_index\.json"):
        DiffusersSound(tmp_path)
    (tmp_path / "model_index.json").write_text(
        json.dumps({"_class_name": "WanPipeline"})
    )
    with pytest.raises(WeightsMissing, match="WanPipeline"):
        DiffusersSound(tmp_path)
