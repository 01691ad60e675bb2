"""Settings of small models of transformers, by family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TEXT = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
LLAMA = TEXT | {
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "head_dim": 8,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
SEQ2SEQ = {
    "vocab_size": 60,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "forced_eos_token_id": None,
}
SWIN = {"image_size": 64, "patch_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
SWIN4 = SWIN | {
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 2, 2, 4],
    "image_size": 128,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
SEGFORMER = {
    "depths": [1, 1, 1, 1],
    "hidden_sizes": [16, 32, 32, 48],
    "num_attention_heads": [1, 2, 2, 4],
    "decoder_hidden_size": 32,
}
VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
}
CLIP = {
    "projection_dim": 24,
    "text_config": TEXT | {"max_position_embeddings": 16, "eos_token_id": 2},
    "vision_config": VISION,
}
WAV2VEC2 = TEXT | {
    "conv_dim": [16, 16, 16],
    "conv_stride": [5, 2, 2],
    "conv_kernel": [10, 3, 3],
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
RESNET = {
    "embedding_size": 16,
    "hidden_sizes": [16, 32],
    "depths": [1, 1],
    "layer_type": "basic",
    "out_features": ["stage2"],
}
DETR = {
    "use_timm_backbone": False,
    "use_pretrained_backbone": False,
    "backbone": None,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "num_queries": 7,
}
BATCHED = {"experts_implementation": "batched_mm"}
MOE = BATCHED | {"moe_intermediate_size": 24, "num_experts_per_tok": 1, "decoder_sparse_step": 1}
DPT = VISION | {
    "is_hybrid": False,
    "backbone_out_indices": [0, 1],
    "neck_hidden_sizes": [8, 16],
    "reassemble_factors": [2, 1],
    "fusion_hidden_size": 16,
}
DEPTH_ANYTHING = {
    "patch_size": 8,
    "reassemble_hidden_size": 32,
    "reassemble_factors": [2, 1],
    "neck_hidden_sizes": [8, 16],
    "fusion_hidden_size": 16,
    "head_hidden_size": 8,
}
MASK = {
    "feature_size": 32,
    "mask_feature_size": 32,
    "hidden_dim": 32,
    "encoder_feedforward_dim": 48,
    "dim_feedforward": 48,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "num_attention_heads": 4,
    "num_queries": 7,
}
SAM = {
    "hidden_size": 32,
    "output_channels": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 64,
    "patch_size": 8,
    "window_size": 4,
    "global_attn_indexes": [1],
    "num_pos_feats": 16,
    "mlp_dim": 48,
}

# name -> the configurations inside its configuration: key -> (class, settings)
PARTS: dict[str, dict[str, tuple[str, Mapping[str, Any]]]] = {
    "detr": {"backbone_config": ("ResNetConfig", RESNET)},
    "depth_anything": {
        "backbone_config": (
            "Dinov2Config",
            VISION | {"image_size": 64, "out_indices": [1, 2], "reshape_hidden_states": False},
        )
    },
    "maskformer": {
        "backbone_config": ("SwinConfig", SWIN4),
        "decoder_config": ("DetrConfig", {key: value for key, value in DETR.items() if "backbone" not in key}),
    },
    "mask2former": {"backbone_config": ("SwinConfig", SWIN4)},
}
