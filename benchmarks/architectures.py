"""The rows of the reach table: how each architecture is made small, and what it is fed. torch and its friends are imported when needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

Built = tuple[Any, dict[str, Any], dict[str, dict[int, str]]]
"""A module, its inputs by name, and the symbolic dimensions of each."""

# Smallest members of the families of timm: name, input size, settings that make it smaller.
TIMM = """
beit_base_patch16_224 224 depth=2,embed_dim=96,num_heads=3
beitv2_base_patch16_224 224 depth=2,embed_dim=96,num_heads=3
botnet26t_256 256
lambda_resnet26t 256
halonet26t 256
gernet_s 64
mobileone_s0 64
repvgg_a0 64
gcresnext26ts 64
eca_resnext26ts 64
regnetz_b16 64
resnet26d 64
resnext26ts 64
cait_xxs24_224 224 depth=2
coat_lite_tiny 64 img_size=64
coat_tiny 64 img_size=64
convit_tiny 224 depth=4,local_up_to_layer=2
convmixer_768_32 64
convnext_atto 64
convnext_atto_rms 64
convnextv2_atto 64
crossvit_tiny_240 240
cs3darknet_s 64
cspresnet50 64
cspdarknet53 64
cspnext_tiny 64
davit_tiny 64
deit_tiny_patch16_224 224 depth=2
deit_tiny_distilled_patch16_224 224 depth=2
deit3_small_patch16_224 224 depth=2
densenet121 64
dla34 64
dla46x_c 64
dla60_res2net 64
dpn48b 64
dpn68 64
edgenext_xx_small 64
efficientformer_l1 224
efficientformerv2_s0 224
efficientnet_b0 64
efficientnet_b0_gn 64
efficientnetv2_rw_t 64
efficientnet_lite0 64
efficientvim_m1 64
efficientvit_b0 64
efficientvit_l1 64
efficientvit_m0 224
eva02_tiny_patch14_224 224 depth=2
eva_giant_patch14_224 224 depth=2,embed_dim=64,num_heads=4
fasternet_t0 64
fastvit_t8 64
fbnetc_100 64
fbnetv3_b 64
focalnet_tiny_srf 64
gcvit_xxtiny 224
ghostnet_050 64
ghostnetv2_100 64
ghostnetv3_050 64
gmixer_12_224 224
gmlp_ti16_224 224
hardcorenas_a 64
hgnet_tiny 64
hgnetv2_b0 64
hiera_tiny_224 224
hrnet_w18_small 64
iformer_t 224
inception_next_atto 64
inception_resnet_v2 96
inception_v3 96
inception_v4 96
lcnet_035 64
legacy_seresnet18 64
legacy_xception 96
levit_128s 224
levit_conv_128s 224
lowformer_b0 64
mambaout_femto 64
maxvit_rmlp_pico_rw_256 256
coatnet_nano_rw_224 224
maxvit_tiny_tf_224 224
caformer_s18 64
convformer_s18 64
poolformer_s12 64
poolformerv2_s12 64
mixer_s32_224 224
mixnet_s 64
mnasnet_small 64
mobilenetv1_100 64
mobilenetv2_050 64
mobilenetv3_small_050 64
mobilenetv4_conv_small_050 64
mobilenetv4_hybrid_medium 64
mobilevit_xxs 64
mobilevitv2_050 64
mvitv2_tiny 224
nasnetalarge 96
nest_tiny 224
nextvit_small 64
nfnet_l0 64
dm_nfnet_f0 64
nf_regnet_b0 64
nf_resnet50 64
pit_ti_224 224
pnasnet5large 96
pvt_v2_b0 64
pvt_v2_b2_li 224
rdnet_tiny 64
regnetx_002 64
regnety_002 64
regnetv_040 64
repghostnet_050 64
repvit_m0_9 64
res2net50_14w_8s 64
res2next50 64
resmlp_12_224 224
resnest14d 64
resnest50d_4s2x40d 64
resnet18 64
resnet10t 64
ecaresnet26t 64
seresnext26d_32x4d 64
resnetv2_50 64
resnetv2_50x1_bit 64
resnetv2_18 64
rexnet_100 64
rexnetr_100 64
selecsls42 64
semnasnet_075 64
sequencer2d_s 224
shvit_s1 224
skresnet18 64
skresnext50_32x4d 64
spnasnet_100 64
starnet_s050 64
swiftformer_xs 64
swin_tiny_patch4_window7_224 224 depths=(2;2;2;2),embed_dim=48
swin_s3_tiny_224 224
swinv2_tiny_window8_256 256 depths=(2;2;2;2),embed_dim=48
swinv2_cr_tiny_224 224 depths=(2;2;2;2),embed_dim=48
tf_efficientnetv2_b0 64
tinynet_e 64
tiny_vit_5m_224 224
tnt_s_patch16_224 224 depth=2
tresnet_m 64
twins_pcpvt_small 224
twins_svt_small 224
vgg11 224
vgg11_bn 224
visformer_tiny 224
vit_tiny_patch16_224 224 depth=2
vit_base_patch16_siglip_224 224 depth=2,embed_dim=96,num_heads=3
vit_base_patch16_rope_reg1_gap_256 256 depth=2,embed_dim=96,num_heads=3
vit_small_resnet26d_224 224 depth=2
vit_relpos_small_patch16_224 224 depth=2
vit_srelpos_small_patch16_224 224 depth=2
samvit_base_patch16_224 224 depth=2,embed_dim=96,num_heads=3,global_attn_indexes=(1;)
vitamin_small_224 224
volo_d1_224 224
vovnet39a 64
ese_vovnet19b_slim 64
xception41 64
xcit_nano_12_p16_224 224 depth=2
"""

# torchvision: kind, input size, names. Of detectors, what lies before the boxes are sorted: backbone, pyramid and dense heads.
TORCHVISION = """
classification 64 convnext_tiny densenet121 efficientnet_b0 efficientnet_v2_s mnasnet0_5 mobilenet_v2 mobilenet_v3_small
classification 64 mobilenet_v3_large regnet_x_400mf regnet_y_400mf resnet18 resnet50 resnext50_32x4d wide_resnet50_2
classification 64 shufflenet_v2_x0_5 shufflenet_v2_x1_0 squeezenet1_0 squeezenet1_1 swin_t swin_v2_t
classification 96 googlenet inception_v3
classification 224 alexnet maxvit_t vit_b_32
segmentation 64 deeplabv3_mobilenet_v3_large deeplabv3_resnet50 fcn_resnet50 lraspp_mobilenet_v3_large
detection 128 fasterrcnn_mobilenet_v3_large_fpn fasterrcnn_resnet50_fpn fasterrcnn_resnet50_fpn_v2 fcos_resnet50_fpn
detection 128 retinanet_resnet50_fpn retinanet_resnet50_fpn_v2 ssdlite320_mobilenet_v3_large
detection 300 ssd300_vgg16
optical_flow 128 raft_small raft_large
video 64 r3d_18 mc3_18 r2plus1d_18 s3d
classification 64 resnet34 resnet101 resnet152 resnext101_32x8d resnext101_64x4d densenet161 densenet169 densenet201
classification 64 efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_b4 efficientnet_b5 efficientnet_b6 efficientnet_b7
classification 64 efficientnet_v2_m mnasnet0_75 mnasnet1_0 mnasnet1_3 shufflenet_v2_x1_5 shufflenet_v2_x2_0
classification 64 regnet_x_800mf regnet_x_1_6gf regnet_x_3_2gf regnet_x_8gf regnet_x_16gf
classification 64 regnet_y_800mf regnet_y_1_6gf regnet_y_3_2gf regnet_y_8gf regnet_y_16gf
classification 64 convnext_small convnext_base swin_s swin_b swin_v2_s swin_v2_b
classification 224 vit_b_16
segmentation 64 deeplabv3_resnet101 fcn_resnet101
"""

TEXT = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
LLAMA = TEXT | {
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "head_dim": 8,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
SEQ2SEQ = {"vocab_size": 60, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
           "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "pad_token_id": 0, "bos_token_id": 1,
           "eos_token_id": 2, "decoder_start_token_id": 1, "forced_eos_token_id": None}  # fmt: skip
SWIN = {"image_size": 64, "patch_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
SWIN4 = SWIN | {"depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4], "image_size": 128,
                "out_features": ["stage1", "stage2", "stage3", "stage4"]}  # fmt: skip
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
WAV2VEC2 = TEXT | {"conv_dim": [16, 16, 16], "conv_stride": [5, 2, 2], "conv_kernel": [10, 3, 3], "num_conv_pos_embeddings": 16,
                   "num_conv_pos_embedding_groups": 4}  # fmt: skip
RESNET = {
    "embedding_size": 16,
    "hidden_sizes": [16, 32],
    "depths": [1, 1],
    "layer_type": "basic",
    "out_features": ["stage2"],
}
DETR = {"use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None, "d_model": 32, "encoder_layers": 2,
        "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
        "num_queries": 7}  # fmt: skip
BATCHED = {"experts_implementation": "batched_mm"}
MOE = BATCHED | {"moe_intermediate_size": 24, "num_experts_per_tok": 1, "decoder_sparse_step": 1}
DPT = VISION | {"is_hybrid": False, "backbone_out_indices": [0, 1], "neck_hidden_sizes": [8, 16], "reassemble_factors": [2, 1],
                "fusion_hidden_size": 16}  # fmt: skip
DEPTH_ANYTHING = {"patch_size": 8, "reassemble_hidden_size": 32, "reassemble_factors": [2, 1], "neck_hidden_sizes": [8, 16],
                  "fusion_hidden_size": 16, "head_hidden_size": 8}  # fmt: skip
MASK = {"feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "encoder_feedforward_dim": 48, "dim_feedforward": 48,
        "encoder_layers": 1, "decoder_layers": 2, "num_attention_heads": 4, "num_queries": 7}  # fmt: skip
SAM = {"hidden_size": 32, "output_channels": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 64, "patch_size": 8,
       "window_size": 4, "global_attn_indexes": [1], "num_pos_feats": 16, "mlp_dim": 48}  # fmt: skip

# name -> the configurations inside its configuration: key -> (class, settings)
PARTS: dict[str, dict[str, tuple[str, Mapping[str, Any]]]] = {
    "detr": {"backbone_config": ("ResNetConfig", RESNET)},
    "depth_anything": {"backbone_config": ("Dinov2Config", VISION | {"image_size": 64, "out_indices": [1, 2], "reshape_hidden_states": False})},
    "maskformer": {"backbone_config": ("SwinConfig", SWIN4),
                   "decoder_config": ("DetrConfig", {key: value for key, value in DETR.items() if "backbone" not in key})},
    "mask2former": {"backbone_config": ("SwinConfig", SWIN4)},
}  # fmt: skip

# name -> (kind of input, configuration class, model class, settings)
TRANSFORMERS: dict[str, tuple[str, str, str, Mapping[str, Any]]] = {
    "bert": ("text", "BertConfig", "BertForSequenceClassification", TEXT),
    "bert_mlm": ("text", "BertConfig", "BertForMaskedLM", TEXT),
    "distilbert": ("text", "DistilBertConfig", "DistilBertForSequenceClassification",
                   {"vocab_size": 60, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}),
    "roberta": ("text", "RobertaConfig", "RobertaForSequenceClassification", TEXT),
    "albert": ("text", "AlbertConfig", "AlbertForSequenceClassification", TEXT | {"embedding_size": 24}),
    "deberta": ("text", "DebertaConfig", "DebertaForSequenceClassification", TEXT | {"pos_att_type": "c2p|p2c", "relative_attention": True}),
    "deberta_v2": ("text", "DebertaV2Config", "DebertaV2ForSequenceClassification",
                   TEXT | {"pos_att_type": "c2p|p2c", "relative_attention": True}),
    "electra": ("text", "ElectraConfig", "ElectraForSequenceClassification", TEXT | {"embedding_size": 24}),
    "mobilebert": ("text", "MobileBertConfig", "MobileBertForSequenceClassification",
                   TEXT | {"embedding_size": 24, "intra_bottleneck_size": 32, "true_hidden_size": 32, "hidden_size": 64}),
    "squeezebert": ("text", "SqueezeBertConfig", "SqueezeBertForSequenceClassification", TEXT | {"embedding_size": 32}),
    "xlm_roberta": ("text", "XLMRobertaConfig", "XLMRobertaForTokenClassification", TEXT),
    "roformer": ("text", "RoFormerConfig", "RoFormerForSequenceClassification", TEXT),
    "fnet": ("ids", "FNetConfig", "FNetForSequenceClassification", TEXT),
    "mpnet": ("text", "MPNetConfig", "MPNetForSequenceClassification", TEXT),
    "modernbert": ("text", "ModernBertConfig", "ModernBertForSequenceClassification", TEXT | {"pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2}),
    "gpt2": ("text", "GPT2Config", "GPT2LMHeadModel", {"vocab_size": 60, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "gpt_neox": ("text", "GPTNeoXConfig", "GPTNeoXForCausalLM", TEXT),
    "bloom": ("text", "BloomConfig", "BloomForCausalLM", {"vocab_size": 60, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "falcon": ("text", "FalconConfig", "FalconForCausalLM", TEXT),
    "gptj": ("text", "GPTJConfig", "GPTJForCausalLM",
             {"vocab_size": 60, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "rotary_dim": 4}),
    "gpt_neo": ("text", "GPTNeoConfig", "GPTNeoForCausalLM",
                {"vocab_size": 60, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]],
                 "max_position_embeddings": 64}),
    "gpt_bigcode": ("text", "GPTBigCodeConfig", "GPTBigCodeForCausalLM",
                    {"vocab_size": 60, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "multi_query": True}),
    "gpt2_cached": ("cached", "GPT2Config", "GPT2LMHeadModel", {"vocab_size": 60, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}),
    "mpt": ("text", "MptConfig", "MptForCausalLM", {"vocab_size": 60, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64}),
    "opt": ("text", "OPTConfig", "OPTForCausalLM", TEXT | {"ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 64}),
    "llama": ("text", "LlamaConfig", "LlamaForCausalLM", LLAMA),
    "llama_tied": ("text", "LlamaConfig", "LlamaForCausalLM", LLAMA | {"tie_word_embeddings": True}),
    "llama_cached": ("cached", "LlamaConfig", "LlamaForCausalLM", LLAMA),
    "llama_multi_query": ("text", "LlamaConfig", "LlamaForCausalLM", LLAMA | {"num_key_value_heads": 1}),
    "mistral": ("text", "MistralConfig", "MistralForCausalLM", LLAMA | {"sliding_window": None}),
    "mixtral": ("text", "MixtralConfig", "MixtralForCausalLM", LLAMA | BATCHED | {"num_local_experts": 2, "num_experts_per_tok": 1}),
    "qwen2": ("text", "Qwen2Config", "Qwen2ForCausalLM", LLAMA),
    "qwen3": ("text", "Qwen3Config", "Qwen3ForCausalLM", LLAMA),
    "gemma": ("text", "GemmaConfig", "GemmaForCausalLM", LLAMA),
    "gemma2": ("text", "Gemma2Config", "Gemma2ForCausalLM", LLAMA),
    "gemma3": ("text", "Gemma3TextConfig", "Gemma3ForCausalLM", LLAMA | {"layer_types": ["sliding_attention", "full_attention"]}),
    "qwen2_moe": ("text", "Qwen2MoeConfig", "Qwen2MoeForCausalLM", LLAMA | MOE | {"num_experts": 2, "shared_expert_intermediate_size": 40}),
    "qwen3_moe": ("text", "Qwen3MoeConfig", "Qwen3MoeForCausalLM", LLAMA | MOE | {"num_experts": 2}),
    "olmo2": ("text", "Olmo2Config", "Olmo2ForCausalLM", LLAMA),
    "cohere": ("text", "CohereConfig", "CohereForCausalLM", {k: v for k, v in LLAMA.items() if k != "head_dim"}),
    "granite": ("text", "GraniteConfig", "GraniteForCausalLM", {k: v for k, v in LLAMA.items() if k != "head_dim"}),
    "starcoder2": ("text", "Starcoder2Config", "Starcoder2ForCausalLM", {k: v for k, v in LLAMA.items() if k != "head_dim"}),
    "stablelm": ("text", "StableLmConfig", "StableLmForCausalLM", {k: v for k, v in LLAMA.items() if k != "head_dim"}),
    "smollm3": ("text", "SmolLM3Config", "SmolLM3ForCausalLM", {k: v for k, v in LLAMA.items() if k != "head_dim"}),
    "gpt_oss": ("text", "GptOssConfig", "GptOssForCausalLM",
                LLAMA | BATCHED | {"num_local_experts": 2, "num_experts_per_tok": 1, "layer_types": ["sliding_attention", "full_attention"]}),
    "phi": ("text", "PhiConfig", "PhiForCausalLM", {k: v for k, v in LLAMA.items() if k != "head_dim"} | {"num_key_value_heads": 4}),
    "phi3": ("text", "Phi3Config", "Phi3ForCausalLM", {k: v for k, v in LLAMA.items() if k != "head_dim"}),
    "t5": ("seq2seq", "T5Config", "T5ForConditionalGeneration",
           {"vocab_size": 60, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}),
    "t5_gated": ("seq2seq", "T5Config", "T5ForConditionalGeneration",
                 {"vocab_size": 60, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0,
                  "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "bart": ("seq2seq", "BartConfig", "BartForConditionalGeneration", SEQ2SEQ),
    "marian": ("seq2seq", "MarianConfig", "MarianMTModel", SEQ2SEQ),
    "pegasus": ("seq2seq", "PegasusConfig", "PegasusForConditionalGeneration", SEQ2SEQ),
    "whisper": ("generator", "WhisperConfig", "WhisperForConditionalGeneration",
                SEQ2SEQ | {"num_mel_bins": 16, "max_source_positions": 16, "max_target_positions": 24}),
    "clip": ("clip", "CLIPConfig", "CLIPModel", CLIP),
    "clipseg": ("clip64", "CLIPSegConfig", "CLIPSegForImageSegmentation",
                CLIP | {"vision_config": VISION | {"image_size": 64, "patch_size": 16}, "extract_layers": [0, 1], "reduce_dim": 16,
                        "decoder_num_attention_heads": 4, "decoder_intermediate_size": 24}),
    "owlvit": ("clip", "OwlViTConfig", "OwlViTModel", CLIP),
    "siglip": ("image", "SiglipConfig", "SiglipForImageClassification", {"vision_config": VISION, "text_config": TEXT}),
    "vit": ("image", "ViTConfig", "ViTForImageClassification", VISION),
    "dinov2": ("image", "Dinov2Config", "Dinov2ForImageClassification", VISION),
    "dinov2_registers": ("image", "Dinov2WithRegistersConfig", "Dinov2WithRegistersForImageClassification", VISION),
    "deit": ("image", "DeiTConfig", "DeiTForImageClassification", VISION),
    "beit": ("image", "BeitConfig", "BeitForImageClassification", VISION | {"use_relative_position_bias": True}),
    "ijepa": ("image", "IJepaConfig", "IJepaForImageClassification", VISION),
    "yolos": ("image", "YolosConfig", "YolosForObjectDetection", VISION | {"image_size": [32, 32], "num_detection_tokens": 5}),
    "dpt": ("image", "DPTConfig", "DPTForDepthEstimation", DPT),
    "depth_anything": ("image64", "DepthAnythingConfig", "DepthAnythingForDepthEstimation", DEPTH_ANYTHING),
    "sam_encoder": ("image64", "SamVisionConfig", "SamVisionModel", SAM),
    "maskformer": ("image64", "MaskFormerConfig", "MaskFormerModel", {"fpn_feature_size": 32, "mask_feature_size": 32}),
    "mask2former": ("image64", "Mask2FormerConfig", "Mask2FormerModel", MASK),
    "pvt_v2": ("image64", "PvtV2Config", "PvtV2ForImageClassification",
               {"hidden_sizes": [16, 32], "depths": [1, 1], "num_attention_heads": [1, 2], "num_encoder_blocks": 2, "mlp_ratios": [2, 2],
                "sr_ratios": [4, 2], "patch_sizes": [7, 3], "strides": [4, 2]}),
    "swin": ("image64", "SwinConfig", "SwinForImageClassification", SWIN),
    "swinv2": ("image64", "Swinv2Config", "Swinv2ForImageClassification", SWIN),
    "convnext": ("image64", "ConvNextConfig", "ConvNextForImageClassification", {"hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 2, 1]}),
    "segformer": ("image64", "SegformerConfig", "SegformerForSemanticSegmentation", SEGFORMER),
    "detr": ("image64", "DetrConfig", "DetrForObjectDetection", DETR),
    "wav2vec2": ("audio", "Wav2Vec2Config", "Wav2Vec2ForCTC", WAV2VEC2),
    "hubert": ("audio", "HubertConfig", "HubertForCTC", WAV2VEC2),
    "wavlm": ("audio", "WavLMConfig", "WavLMForCTC", WAV2VEC2),
    "sew": ("audio", "SEWConfig", "SEWForCTC", WAV2VEC2),
    "audio_spectrogram": ("spectrogram", "ASTConfig", "ASTForAudioClassification",
                          VISION | {"num_mel_bins": 16, "max_length": 32, "patch_size": 8, "time_stride": 8, "frequency_stride": 8}),
}  # fmt: skip

QUICK = ("timm/resnet10t", "timm/mobilenetv3_small_050", "timm/ghostnet_050", "transformers/gpt2", "transformers/llama")


@dataclass(frozen=True, slots=True)
class Row:
    """One architecture. Settings are those of its family."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    size: int = 0

    def build(self) -> Built:
        """The module with its inputs. Raises ImportError where its library is missing, and whatever that library raises."""
        _declare()
        family, model = self.name.split("/")
        if family == "transformers":
            return _transformers(model)
        return _timm(model, self) if family == "timm" else _torchvision(model, self)


@cache
def _declare() -> None:
    """Declare the operators without which torchvision cannot even be imported, where its wheel is built for another torch than ours.

    The wheels of the index are built for CUDA, so their library of operators does not load beside a torch for the CPU. Nothing in the
    table runs these operators, but torchvision (and so timm and transformers) registers shapes for them on import.
    """
    import torch  # noqa: PLC0415 - an extra

    try:
        import torchvision  # noqa: F401, PLC0415 - an extra
    except RuntimeError:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    except ImportError:
        pass


def _timm(name: str, row: Row) -> Built:
    import timm  # noqa: PLC0415 - an extra
    import torch  # noqa: PLC0415 - an extra

    model = timm.create_model(name, num_classes=10, exportable=True, **row.settings)
    image = torch.randn(2, model.pretrained_cfg.get("input_size", (3,))[0], row.size, row.size)
    return model, {"image": image}, {"image": {0: "batch"}}


def _torchvision(name: str, row: Row) -> Built:
    import torch  # noqa: PLC0415 - an extra
    import torchvision  # noqa: PLC0415 - an extra

    kind, image, batch = row.settings["kind"], torch.randn(2, 3, row.size, row.size), {0: "batch"}
    options: dict[str, Any] = {"weights": None} | ({} if kind == "optical_flow" else {"num_classes": 10})
    if kind in ("segmentation", "detection"):
        options["weights_backbone"] = None
    if name in ("googlenet", "inception_v3"):
        options |= {"aux_logits": False, "init_weights": False}
    model = torchvision.models.get_model(name, **options)
    if kind == "segmentation":
        return _plain([model], lambda whole, x: whole(x)["out"]), {"image": image}, {"image": batch}
    if kind == "detection":
        parts = [model.backbone, model.rpn.head if hasattr(model, "rpn") else model.head]
        return _plain(parts, lambda body, head, x: head(list(body(x).values()))), {"image": image}, {"image": batch}
    if kind == "optical_flow":
        pair = {"first": image, "second": torch.randn_like(image)}
        return _plain([model], lambda whole, *x: whole(*x, num_flow_updates=2)[-1]), pair, dict.fromkeys(pair, batch)
    if kind == "video":
        return model, {"frames": torch.randn(2, 3, 16, row.size, row.size)}, {"frames": batch}
    return model, {"image": image}, {"image": batch}


def _plain(parts: Sequence[Any], forward: Callable[..., Any]) -> Any:
    """A module of parts whose forward is a plain function of them and the inputs."""
    import torch  # noqa: PLC0415 - an extra

    class Plain(torch.nn.Module):
        """Positional inputs in, tensors out."""

        def __init__(self) -> None:
            super().__init__()
            self.parts = torch.nn.ModuleList(parts)

        def forward(self, *given: Any) -> Any:
            return forward(*self.parts, *given)

    return Plain()


def _transformers(name: str) -> Built:
    import torch  # noqa: PLC0415 - an extra
    import transformers  # noqa: PLC0415 - an extra

    kind, config_class, model_class, settings = TRANSFORMERS[name]
    inner = {key: getattr(transformers, made)(**given) for key, (made, given) in PARTS.get(name, {}).items()}
    config = getattr(transformers, config_class)(**settings, **inner)
    model = getattr(transformers, model_class)(config)
    inputs, dynamic = _inputs(kind)
    if kind == "cached":
        layers, heads = config.num_hidden_layers, getattr(config, "num_key_value_heads", config.num_attention_heads)
        width = config.hidden_size // config.num_attention_heads
        for past in (f"past.{layer}.{part}" for layer in range(layers) for part in ("key", "value")):
            inputs[past], dynamic[past] = torch.randn(2, heads, 4, width), {0: "batch", 2: "past"}

    class First(torch.nn.Module):
        """The model with a plain signature and its first output alone; with a cache, the cache as well."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *given: Any) -> Any:
            options: dict[str, Any] = {}
            if kind in ("text", "seq2seq", "generator") and hasattr(config, "use_cache"):
                options = {"use_cache": False}
            if kind == "cached":
                pairs = list(zip(given[2::2], given[3::2], strict=True))
                options = {"use_cache": True, "past_key_values": transformers.DynamicCache(pairs)}
            named = {key: value for key, value in zip(inputs, given, strict=True) if not key.startswith("past.")}
            found = self.model(**named, **options, return_dict=True)
            first = next(value for value in found.values() if isinstance(value, torch.Tensor))
            present = found.past_key_values.layers if kind == "cached" else ()
            return (
                (first, *(tensor for layer in present for tensor in (layer.keys, layer.values)))
                if kind == "cached"
                else first
            )

    return First(), inputs, dynamic


def _inputs(kind: str) -> tuple[dict[str, Any], dict[str, dict[int, str]]]:
    import torch  # noqa: PLC0415 - an extra

    ids, text = torch.randint(3, 50, (2, 9)), {0: "batch", 1: "sequence"}
    mask, pixels = torch.ones(2, 9, dtype=torch.int64), "pixel_values"
    known: dict[str, tuple[dict[str, Any], dict[str, dict[int, str]]]] = {
        "text": ({"input_ids": ids, "attention_mask": mask}, {"input_ids": text, "attention_mask": text}),
        "ids": ({"input_ids": ids}, {"input_ids": {0: "batch"}}),
        "cached": (
            {"input_ids": ids, "attention_mask": torch.ones(2, 13, dtype=torch.int64)},
            {"input_ids": text, "attention_mask": {0: "batch", 1: "past + sequence"}},
        ),
        "seq2seq": (
            {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": ids[:, :5].clone()},
            {"input_ids": text, "attention_mask": text, "decoder_input_ids": {0: "batch", 1: "target"}},
        ),
        "generator": (
            {"input_features": torch.randn(2, 16, 32), "decoder_input_ids": ids},
            {"input_features": {0: "batch"}, "decoder_input_ids": text},
        ),
        "image": ({pixels: torch.randn(2, 3, 32, 32)}, {pixels: {0: "batch"}}),
        "image64": ({pixels: torch.randn(2, 3, 64, 64)}, {pixels: {0: "batch"}}),
        "clip": (
            {"input_ids": ids, pixels: torch.randn(2, 3, 32, 32), "attention_mask": mask},
            {"input_ids": text, "attention_mask": text, pixels: {0: "images"}},
        ),
        "clip64": (
            {"input_ids": ids, pixels: torch.randn(2, 3, 64, 64), "attention_mask": mask},
            {"input_ids": text, "attention_mask": text, pixels: {0: "batch"}},
        ),
        "audio": ({"input_values": torch.randn(2, 800)}, {"input_values": {0: "batch"}}),
        "spectrogram": ({"input_values": torch.randn(2, 32, 16)}, {"input_values": {0: "batch"}}),
    }
    return known[kind]


def _rows() -> tuple[Row, ...]:
    rows = []
    for line in TIMM.strip().splitlines():
        name, size, *rest = line.split()
        pairs = (pair.split("=") for pair in rest[0].split(",")) if rest else ()
        settings = {
            key: tuple(int(v) for v in value.strip("()").split(";") if v) if "(" in value else int(value)
            for key, value in pairs
        }
        rows.append(Row(f"timm/{name}", settings, int(size)))
    for line in TORCHVISION.strip().splitlines():
        kind, size, *names = line.split()
        rows += [Row(f"torchvision/{name}", {"kind": kind}, int(size)) for name in names]
    return (*rows, *(Row(f"transformers/{name}") for name in TRANSFORMERS))


ROWS = _rows()
