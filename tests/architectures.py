"""Tiny random checkpoints of the architectures that transformers can ask about an image, for tests.

`build(name, folder)` saves one, as `save_pretrained` does: 64 dimensions, 2 to 4 blocks, a byte-level tokenizer with
single digits, a chat template in the style of the published one. What the configurations ask for is the least that
keeps a peculiarity of the architecture (windows, experts, M-RoPE, tiles, cross-attention, soft caps, ...).
"""

import logging

import torch
import transformers as tf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

# fmt: off
SENTENCES = [
    'Answer using as few words as possible How many squares are there in this picture? user assistant '
    'Choose from [5, 2, 4, 3, 1]',
    'How many white red blue green yellow circles triangles are there in the image? one two three four five six '
    'seven eight nine ten',
    'system USER ASSISTANT model'] * 5


ARCHITECTURES = {}


def architecture(name, **meta):
    "Adds a builder to `ARCHITECTURES`: no arguments, gives a processor and a configuration."

    def add(make):
        ARCHITECTURES[name] = (make, meta)
        return make
    return add


class Words:
    """A byte-level tokenizer with special tokens; digits apart."""

    def __init__(self, special=(), names=None, bos=None, eos='<|eos|>', pad='<|pad|>', add_bos=False, unk=None,
        cls=None, keep_order=()):
        words = Tokenizer(models.BPE())
        words.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False)])
        words.decoder = decoders.ByteLevel()
        specials = [s for s in dict.fromkeys([pad, *([bos] if bos else []), eos, *([unk] if unk else []), *special,
            *(names or {}).values()])]
        words.train_from_iterator(SENTENCES, trainers.BpeTrainer(vocab_size=500, special_tokens=specials,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
        if bos and add_bos:
            words.post_processor = processors.TemplateProcessing(single=f'{bos} $A', pair=f'{bos} $A {bos} $B',
                special_tokens=[(bos, words.token_to_id(bos))])
        sizes = dict(eos_token=eos,
            pad_token=pad) | ({'bos_token': bos} if bos else {}) | ({'unk_token': unk} if unk else {})
        self.tok = (cls or tf.PreTrainedTokenizerFast)(tokenizer_object=words, extra_special_tokens=names or [],
            **sizes)
        self.tok.model_input_names = ['input_ids', 'attention_mask']
        self.bos, self.eos, self.pad = (self.tok.bos_token_id, self.tok.eos_token_id, self.tok.pad_token_id)
        self.V = len(self.tok)

    def id(self, s):
        return self.tok.convert_tokens_to_ids(s)


def chat(image, bos='', start='<|im_start|>', end='<|im_end|>'):
    part = "{% if part['type'] == 'image' %}" + image + "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    turn = start + "{{ message['role'] }}\n{% for part in message['content'] %}" + part + '{% endfor %}' + end + '\n'
    answer = '{% if add_generation_prompt %}' + start + 'assistant\n{% endif %}'
    return (bos and '{{ bos_token }}') + '{% for message in messages %}' + turn + '{% endfor %}' + answer


def words_only(before='', behind=''):
    "A template of captioners, which are given the image beside the prompt."
    text = before + "{{ part['text'] }}" + behind
    inside = "{% for part in m['content'] %}{% if part['type'] == 'text' %}" + text + '{% endif %}{% endfor %}'
    return '{% for m in messages %}' + inside + '{% endfor %}'


CHAT_MARKS = ('<|im_start|>', '<|im_end|>')


def text(words, kind, **more):
    base = dict(model_type=kind, vocab_size=words.V, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=4096,
        bos_token_id=words.bos, eos_token_id=words.eos, pad_token_id=words.pad, tie_word_embeddings=False)
    return base | more


def clip(**more):
    return dict(model_type='clip_vision_model', hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, image_size=56, patch_size=14, projection_dim=32) | more


def siglip(**more):
    return dict(model_type='siglip_vision_model', hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, image_size=56, patch_size=14, vision_use_head=False) | more


CLIP_SIZES = dict(size={'shortest_edge': 56}, crop_size={'height': 56, 'width': 56})


def square(side):
    "A size in the words of an image processor."
    return {'height': side, 'width': side}


QWEN_TOKENS = dict(special=(*CHAT_MARKS, '<|vision_start|>', '<|vision_end|>', '<think>', '</think>'),
    names=dict(image_token='<|image_pad|>', video_token='<|video_pad|>'))


QWEN_CHAT = chat('<|vision_start|><|image_pad|><|vision_end|>')


def qwen_ids(words):
    return dict(image_token_id=words.id('<|image_pad|>'), video_token_id=words.id('<|video_pad|>'),
        vision_start_token_id=words.id('<|vision_start|>'), vision_end_token_id=words.id('<|vision_end|>'))


def mrope(*sections, **more):
    "Rotary positions in several dimensions."
    return {'rope_type': 'default', 'rope_theta': 10000.0, 'mrope_section': list(sections)} | more


def qwen_sizes(patch=14, names=16):
    return dict(size={'shortest_edge': 4 * (2 * patch) ** 2, 'longest_edge': names * (2 * patch) ** 2},
        patch_size=patch)


def qwen_processor(cls, words, patch=14, vid=None):
    images = tf.Qwen2VLImageProcessor(**qwen_sizes(patch))
    videos = (vid or tf.Qwen2VLVideoProcessor)(**qwen_sizes(patch))
    return cls(image_processor=images, tokenizer=words.tok, video_processor=videos, chat_template=QWEN_CHAT)


@architecture('qwen2_vl')
def build_qwen2_vl():
    words = Words(**QWEN_TOKENS)
    config = tf.Qwen2VLConfig(text_config=text(words, 'qwen2_vl_text', rope_parameters=mrope(2, 3, 3)),
        vision_config=dict(depth=2, embed_dim=32, hidden_size=64, num_heads=4, mlp_ratio=2), **qwen_ids(words))
    return (qwen_processor(tf.Qwen2VLProcessor, words), config)


@architecture('qwen2_5_vl')
def build_qwen2_5_vl():
    words = Words(**QWEN_TOKENS)
    config = tf.Qwen2_5_VLConfig(text_config=text(words, 'qwen2_5_vl_text', rope_parameters=mrope(2, 3, 3)),
        vision_config=dict(depth=2, hidden_size=32, intermediate_size=64, num_heads=4, out_hidden_size=64,
        window_size=56, fullatt_block_indexes=[1]), **qwen_ids(words))
    return (qwen_processor(tf.Qwen2_5_VLProcessor, words), config)


QWEN3_VISION = dict(depth=2, hidden_size=32, intermediate_size=64, num_heads=4, out_hidden_size=64, patch_size=16,
    num_position_embeddings=64)


@architecture('qwen3_vl')
def build_qwen3_vl():
    words = Words(**QWEN_TOKENS)
    config = tf.Qwen3VLConfig(text_config=text(words, 'qwen3_vl_text', num_hidden_layers=3, rope_parameters=mrope(3,
        3, 2, mrope_interleaved=True)), vision_config=QWEN3_VISION | dict(deepstack_visual_indexes=[0, 1]),
        **qwen_ids(words))
    return (qwen_processor(tf.Qwen3VLProcessor, words, 16, tf.Qwen3VLVideoProcessor), config)


@architecture('qwen3_vl_moe')
def build_qwen3_vl_moe():
    words = Words(**QWEN_TOKENS)
    config = tf.Qwen3VLMoeConfig(text_config=text(words, 'qwen3_vl_moe_text', num_hidden_layers=3, num_experts=4,
        num_experts_per_tok=2, moe_intermediate_size=32, rope_parameters=mrope(3, 3, 2, mrope_interleaved=True)),
        vision_config=QWEN3_VISION | dict(deepstack_visual_indexes=[0, 1]), **qwen_ids(words))
    return (qwen_processor(tf.Qwen3VLProcessor, words, 16, tf.Qwen3VLVideoProcessor), config)


QWEN35_TEXT = dict(layer_types=['linear_attention', 'full_attention'], linear_key_head_dim=16,
    linear_value_head_dim=16, linear_num_key_heads=2, linear_num_value_heads=4, head_dim=32, rope_parameters=mrope(2,
    1, 1, mrope_interleaved=True, partial_rotary_factor=0.25))


@architecture('qwen3_5')
def build_qwen3_5():
    words = Words(**QWEN_TOKENS)
    config = tf.Qwen3_5Config(text_config=text(words, 'qwen3_5_text', **QWEN35_TEXT), vision_config=QWEN3_VISION,
        **qwen_ids(words))
    return (qwen_processor(tf.Qwen3VLProcessor, words, 16, tf.Qwen3VLVideoProcessor), config)


@architecture('qwen3_5_moe')
def build_qwen3_5_moe():
    words = Words(**QWEN_TOKENS)
    config = tf.Qwen3_5MoeConfig(text_config=text(words, 'qwen3_5_moe_text', **QWEN35_TEXT, num_experts=4,
        num_experts_per_tok=2, moe_intermediate_size=32, shared_expert_intermediate_size=32),
        vision_config=QWEN3_VISION, **qwen_ids(words))
    return (qwen_processor(tf.Qwen3VLProcessor, words, 16, tf.Qwen3VLVideoProcessor), config)


LLAVA_TOKENS = dict(special=CHAT_MARKS, names=dict(image_token='<image>', video_token='<video>'), bos='<s>',
    eos='</s>', add_bos=True)


LLAVA_CHAT = chat('<image>\n', start='', end='').replace("{{ message['role'] }}\n",
    "{{ message['role'] | upper }}: ").replace('assistant\n', 'ASSISTANT:')


def llava_like(cls, proc, ipc, tkind='llama', ipkw=None, ckw=None, pkw=None, tkw=None, vision=None,
    special_tokens=None, tmpl=None, **extra):
    words = Words(**special_tokens or LLAVA_TOKENS)
    images = ipc(**CLIP_SIZES if ipkw is None else ipkw)
    processor = proc(image_processor=images, tokenizer=words.tok, patch_size=14,
        vision_feature_select_strategy='default', num_additional_image_tokens=1, chat_template=tmpl or LLAVA_CHAT,
        **pkw or {})
    image = {'image_token_index': words.id('<image>')}
    return (processor, cls(text_config=text(words, tkind, **tkw or {}), vision_config=vision or clip(),
        vision_feature_layer=-2, vision_feature_select_strategy='default', **image, **ckw or {}))


@architecture('llava')
def build_llava():
    return llava_like(tf.LlavaConfig, tf.LlavaProcessor, tf.CLIPImageProcessor)


@architecture('vipllava')
def build_vipllava():
    processor, config = llava_like(tf.VipLlavaConfig, tf.LlavaProcessor, tf.CLIPImageProcessor)
    config.vision_feature_layers = [-2, -1]
    return (processor, config)


@architecture('llava_next')
def build_llava_next():
    return llava_like(tf.LlavaNextConfig, tf.LlavaNextProcessor, tf.LlavaNextImageProcessor, 'mistral',
        ipkw=CLIP_SIZES | dict(image_grid_pinpoints=[[56, 112], [112, 56], [112, 112]]),
        ckw=dict(image_grid_pinpoints=[[56, 112], [112, 56], [112, 112]]))


@architecture('granite_vision')
def build_granite_vision():
    return llava_like(tf.LlavaNextConfig, tf.LlavaNextProcessor, tf.LlavaNextImageProcessor, 'granite',
        ipkw=CLIP_SIZES | dict(image_grid_pinpoints=[[56, 112], [112, 56], [112, 112]]),
        ckw=dict(image_grid_pinpoints=[[56, 112], [112, 56], [112, 112]]), tkw=dict(logits_scaling=8.0,
        embedding_multiplier=12.0, residual_multiplier=0.22, attention_multiplier=0.25))


@architecture('llava_next_video')
def build_llava_next_video():
    words = Words(**LLAVA_TOKENS)
    images = tf.LlavaNextImageProcessor(**CLIP_SIZES, image_grid_pinpoints=[[56, 112], [112, 56], [112, 112]])
    processor = tf.LlavaNextVideoProcessor(image_processor=images, tokenizer=words.tok,
        video_processor=tf.LlavaNextVideoVideoProcessor(**CLIP_SIZES), patch_size=14,
        vision_feature_select_strategy='default', num_additional_image_tokens=1, chat_template=LLAVA_CHAT)
    return (processor, tf.LlavaNextVideoConfig(text_config=text(words, 'llama'), vision_config=clip(),
        image_token_index=words.id('<image>'), video_token_index=words.id('<video>'), image_grid_pinpoints=[[56,
        112], [112, 56], [112, 112]]))


@architecture('llava_onevision')
def build_llava_onevision():
    words = Words(special=CHAT_MARKS, names=dict(image_token='<image>', video_token='<video>'))
    images = tf.LlavaOnevisionImageProcessor(size=square(56), image_grid_pinpoints=[[56, 56], [56, 112], [112, 56],
        [112, 112]])
    processor = tf.LlavaOnevisionProcessor(image_processor=images, tokenizer=words.tok,
        video_processor=tf.LlavaOnevisionVideoProcessor(size=square(56)), num_image_tokens=16,
        vision_feature_select_strategy='full', chat_template=chat('<image>\n'))
    return (processor, tf.LlavaOnevisionConfig(text_config=text(words, 'qwen2'), vision_config=siglip(),
        vision_feature_select_strategy='full', image_token_index=words.id('<image>'),
        video_token_index=words.id('<video>'), image_grid_pinpoints=[[56, 56], [56, 112], [112, 56], [112, 112]]))


@architecture('video_llava')
def build_video_llava():
    words = Words(**LLAVA_TOKENS)
    images = tf.VideoLlavaImageProcessor(**CLIP_SIZES)
    processor = tf.VideoLlavaProcessor(image_processor=images,
        video_processor=tf.VideoLlavaVideoProcessor(**CLIP_SIZES), tokenizer=words.tok, patch_size=14,
        vision_feature_select_strategy='default', num_additional_image_tokens=1, chat_template=LLAVA_CHAT)
    return (processor, tf.VideoLlavaConfig(text_config=text(words, 'llama'), vision_config=clip(),
        image_token_index=words.id('<image>'), video_token_index=words.id('<video>'), image_seq_length=16,
        video_seq_length=136))


@architecture('fast_vlm')
def build_fast_vlm():
    words = Words(special=CHAT_MARKS, names=dict(image_token='<image>'))
    images = tf.CLIPImageProcessor(size={'shortest_edge': 256}, crop_size=square(256))
    processor = tf.LlavaProcessor(image_processor=images, tokenizer=words.tok, patch_size=64,
        vision_feature_select_strategy='default', num_additional_image_tokens=1, chat_template=chat('<image>\n'))
    return (processor, tf.FastVlmConfig(text_config=text(words, 'qwen2'),
        vision_config=dict(model_type='timm_wrapper', architecture='fastvit_mci3', do_pooling=True,
        global_pool='avg', hidden_size=128, initializer_range=0.02, model_args=dict(inference_mode=True, layers=[1,
        1, 1, 1, 1], embed_dims=[8, 16, 32, 64, 64])), image_token_index=words.id('<image>'),
        vision_feature_layer=-1))


def pixtral(**m):
    return dict(model_type='pixtral', hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, head_dim=8, image_size=112, patch_size=14) | m


MISTRAL_TOKENS = dict(names=dict(image_token='[IMG]', image_break_token='[IMG_BREAK]', image_end_token='[IMG_END]'),
    special=('[INST]', '[/INST]'), bos='<s>', eos='</s>', add_bos=True)


MISTRAL_CHAT = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}[INST]"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}[IMG]{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}[/INST]{% endif %}{% endfor %}"
)


@architecture('pixtral')
def build_pixtral():
    words = Words(**MISTRAL_TOKENS)
    images = tf.PixtralImageProcessor(size={'longest_edge': 70}, patch_size=square(14))
    processor = tf.PixtralProcessor(image_processor=images, tokenizer=words.tok, patch_size=14,
        chat_template=MISTRAL_CHAT)
    return (processor, tf.LlavaConfig(text_config=text(words, 'mistral'), vision_config=pixtral(),
        image_token_index=words.id('[IMG]'), vision_feature_layer=-1, vision_feature_select_strategy='full'))


@architecture('mistral3')
def build_mistral3():
    words = Words(**MISTRAL_TOKENS)
    images = tf.PixtralImageProcessor(size={'longest_edge': 112}, patch_size=square(14))
    processor = tf.PixtralProcessor(image_processor=images, tokenizer=words.tok, patch_size=14, spatial_merge_size=2,
        chat_template=MISTRAL_CHAT)
    return (processor, tf.Mistral3Config(text_config=text(words, 'mistral'), vision_config=pixtral(),
        image_token_index=words.id('[IMG]'), spatial_merge_size=2, tie_word_embeddings=False))


@architecture('lighton_ocr')
def build_lighton_ocr():
    words = Words(special=(*CHAT_MARKS,), names=dict(image_token='<|image_pad|>', image_break_token='<|vision_pad|>',
        image_end_token='<|vision_end|>'))
    images = tf.PixtralImageProcessor(size={'longest_edge': 112}, patch_size=square(14))
    processor = tf.LightOnOcrProcessor(image_processor=images, tokenizer=words.tok, patch_size=14,
        spatial_merge_size=2, chat_template=chat('<|image_pad|>'))
    return (processor, tf.LightOnOcrConfig(text_config=text(words, 'qwen3'), vision_config=pixtral(),
        image_token_id=words.id('<|image_pad|>'), spatial_merge_size=2, vision_feature_layer=-1))


GEMMA_TOKENS = dict(special=('<start_of_turn>', '<end_of_turn>'), names=dict(boi_token='<start_of_image>',
    eoi_token='<end_of_image>', image_token='<image_soft_token>'), bos='<bos>', eos='<eos>', pad='<pad>',
    add_bos=True)


GEMMA_CHAT = chat('<start_of_image>', bos='1', start='<start_of_turn>',
    end='<end_of_turn>').replace("{{ message['role'] }}",
    "{{ 'model' if message['role'] == 'assistant' else message['role'] }}").replace('assistant\n', 'model\n')


@architecture('paligemma2')
def build_paligemma2():
    words = Words(special=('<image>',), names=dict(image_token='<image>'), bos='<bos>', eos='<eos>', pad='<pad>',
        add_bos=True)
    images = tf.SiglipImageProcessor(size=square(56))
    images.image_seq_length = 16
    processor = tf.PaliGemmaProcessor(image_processor=images, tokenizer=words.tok)
    size = len(processor.tokenizer)
    return (processor, tf.PaliGemmaConfig(text_config=text(words, 'gemma2', vocab_size=size, query_pre_attn_scalar=16,
        sliding_window=4096), vision_config=siglip(projection_dim=64),
        image_token_index=processor.tokenizer.convert_tokens_to_ids('<image>'), projection_dim=64, hidden_size=64,
        pad_token_id=words.pad, bos_token_id=words.bos, eos_token_id=words.eos))


def gemma3(cap=None, window=1024):
    words = Words(**GEMMA_TOKENS)
    images = tf.Gemma3ImageProcessor(size=square(56))
    processor = tf.Gemma3Processor(image_processor=images, tokenizer=words.tok, image_seq_length=4,
        chat_template=GEMMA_CHAT)
    decoder = text(words, 'gemma3_text', query_pre_attn_scalar=16, sliding_window=window,
        layer_types=['sliding_attention', 'full_attention'], final_logit_softcapping=cap, tie_word_embeddings=True)
    return (processor, tf.Gemma3Config(text_config=decoder, vision_config=siglip(), mm_tokens_per_image=4,
        boi_token_index=words.id('<start_of_image>'), eoi_token_index=words.id('<end_of_image>'),
        image_token_index=words.id('<image_soft_token>'), tie_word_embeddings=True))


@architecture('gemma3')
def build_gemma3():
    return gemma3()


@architecture('gemma3-window16')
def build_gemma3_window16():
    return gemma3(window=16)


@architecture('gemma3n')
def build_gemma3n():
    names = dict(GEMMA_TOKENS)
    names['names'] = names['names'] | dict(audio_token='<audio_soft_token>', boa_token='<start_of_audio>',
        eoa_token='<end_of_audio>')
    words = Words(**names)
    images = tf.SiglipImageProcessor(size=square(256))
    fe = tf.Gemma3nAudioFeatureExtractor()
    processor = tf.Gemma3nProcessor(feature_extractor=fe, image_processor=images, tokenizer=words.tok,
        image_seq_length=256, chat_template=GEMMA_CHAT.replace('<start_of_image>', '<image_soft_token>'))
    size = words.V
    decoder = text(words, 'gemma3n_text', num_hidden_layers=4, intermediate_size=[96] * 4,
        layer_types=['sliding_attention', 'full_attention'] * 2, sliding_window=512, final_logit_softcapping=5.0,
        vocab_size_per_layer_input=size, hidden_size_per_layer_input=8, num_kv_shared_layers=2, laurel_rank=8,
        activation_sparsity_pattern=[0.5, 0.0, 0.0, 0.0], altup_num_inputs=2, tie_word_embeddings=True,
        vocab_size=size + 8)
    return (processor, tf.Gemma3nConfig(text_config=decoder, vision_config=dict(architecture='mobilenetv5_300m_enc',
        hidden_size=2048, vocab_size=4, vocab_offset=size, do_pooling=False, model_args=None),
        audio_config=dict(vocab_size=4, vocab_offset=size + 4, hidden_size=32, conf_num_attention_heads=2,
        conf_num_hidden_layers=1, sscp_conv_channel_size=[8, 4]), image_token_id=words.id('<image_soft_token>'),
        boi_token_id=words.id('<start_of_image>'), eoi_token_id=words.id('<end_of_image>'),
        audio_token_id=words.id('<audio_soft_token>'), boa_token_id=words.id('<start_of_audio>'),
        eoa_token_id=words.id('<end_of_audio>'), vision_soft_tokens_per_image=256, tie_word_embeddings=True))


IDEFICS_TOKENS = dict(special=(*CHAT_MARKS, '<row_1_col_1>', '<row_1_col_2>', '<row_2_col_1>', '<row_2_col_2>',
    '<global-img>'), names=dict(image_token='<image>', fake_image_token='<fake_token_around_image>',
    global_image_token='<global-img>', end_of_utterance_token='<end_of_utterance>',
    image_boundary_token='<fake_token_around_image>'))


IDEFICS_CHAT = chat('<image>', start='', end='<end_of_utterance>').replace("{{ message['role'] }}\n",
    "{{ message['role'] | capitalize }}:").replace('assistant\n', 'Assistant:')


@architecture('smolvlm')
def build_smolvlm():
    words = Words(**IDEFICS_TOKENS)
    sizes = dict(size={'longest_edge': 64}, max_image_size={'longest_edge': 32}, do_image_splitting=True)
    images = tf.SmolVLMImageProcessor(**sizes)
    videos = tf.SmolVLMVideoProcessor(size={'longest_edge': 32}, max_image_size={'longest_edge': 32}, num_frames=2,
        fps=1)
    processor = tf.SmolVLMProcessor(image_processor=images, tokenizer=words.tok, video_processor=videos,
        image_seq_len=4, chat_template=IDEFICS_CHAT)
    return (processor, tf.SmolVLMConfig(text_config=text(words, 'llama'), vision_config=dict(hidden_size=32,
        intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8),
        image_token_id=words.id('<image>'), scale_factor=2, pad_token_id=words.pad))


@architecture('idefics3')
def build_idefics3():
    words = Words(**IDEFICS_TOKENS)
    images = tf.Idefics3ImageProcessor(size={'longest_edge': 64}, max_image_size={'longest_edge': 32},
        do_image_splitting=True)
    processor = tf.Idefics3Processor(image_processor=images, tokenizer=words.tok, image_seq_len=4,
        chat_template=IDEFICS_CHAT)
    return (processor, tf.Idefics3Config(text_config=text(words, 'llama'), vision_config=dict(hidden_size=32,
        intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8),
        image_token_id=words.id('<image>'), scale_factor=2, pad_token_id=words.pad))


@architecture('idefics2')
def build_idefics2():
    words = Words(**IDEFICS_TOKENS | dict(bos='<s>', eos='</s>', add_bos=True))
    images = tf.Idefics2ImageProcessor(size={'longest_edge': 56, 'shortest_edge': 28}, do_image_splitting=False)
    processor = tf.Idefics2Processor(image_processor=images, tokenizer=words.tok, image_seq_len=8,
        chat_template=IDEFICS_CHAT)
    return (processor, tf.Idefics2Config(text_config=text(words, 'mistral'), vision_config=dict(hidden_size=32,
        intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=56, patch_size=14),
        perceiver_config=dict(resampler_n_latents=8, resampler_depth=1, resampler_n_heads=4, resampler_head_dim=8,
        num_key_value_heads=2, hidden_size=64), image_token_id=words.id('<image>')))


@architecture('mllama')
def build_mllama():
    words = Words(special=('<|start_header_id|>', '<|end_header_id|>', '<|eot_id|>', '<|python_tag|>'),
        names=dict(image_token='<|image|>'), bos='<|begin_of_text|>', eos='<|eot_id|>',
        pad='<|finetune_right_pad_id|>', add_bos=True)
    images = tf.MllamaImageProcessor(size=square(56), max_image_tiles=2)
    processor = tf.MllamaProcessor(image_processor=images, tokenizer=words.tok, chat_template=chat('<|image|>',
        bos='1', start='<|start_header_id|>', end='<|eot_id|>'))
    decoder = text(words, 'mllama_text_model', num_hidden_layers=4, cross_attention_layers=[1, 3], vocab_size=words.V)
    decoder.pop('head_dim')
    return (processor, tf.MllamaConfig(text_config=decoder, vision_config=dict(hidden_size=32, num_hidden_layers=2,
        num_global_layers=1, attention_heads=4, intermediate_size=64, vision_output_dim=96, image_size=56,
        patch_size=14, max_num_tiles=2, intermediate_layers_indices=[0, 1], supported_aspect_ratios=[[1, 1], [1, 2],
        [2, 1]]), image_token_index=words.id('<|image|>')))


@architecture('llama4', bf16=True)
def build_llama4():
    words = Words(special=('<|header_start|>', '<|header_end|>', '<|eot|>'), names=dict(image_token='<|image|>',
        fake_image_token='<|image|>', start_of_image_token='<|image_start|>', end_of_image_token='<|image_end|>',
        patch_token='<|patch|>', tile_x_separator_token='<|tile_x_separator|>',
        tile_y_separator_token='<|tile_y_separator|>'), bos='<|begin_of_text|>', eos='<|eot|>', add_bos=True)
    images = tf.Llama4ImageProcessor(size=square(56), max_patches=4)
    processor = tf.Llama4Processor(image_processor=images, tokenizer=words.tok, patch_size=14,
        pixel_shuffle_ratio=0.5, chat_template=chat('<|image|>', bos='1', start='<|header_start|>', end='<|eot|>'))
    decoder = text(words, 'llama4_text', intermediate_size_mlp=96, num_local_experts=4, num_experts_per_tok=1,
        moe_layers=[1], interleave_moe_layer_step=2, attention_chunk_size=8192, no_rope_layers=[1, 0],
        layer_types=['chunked_attention', 'full_attention'])
    return (processor, tf.Llama4Config(text_config=decoder, vision_config=dict(hidden_size=32, num_hidden_layers=2,
        num_attention_heads=4, intermediate_size=128, vision_output_dim=64, image_size=56, patch_size=14,
        projector_input_dim=64, projector_output_dim=64, pixel_shuffle_ratio=0.5),
        boi_token_index=words.id('<|image_start|>'), eoi_token_index=words.id('<|image_end|>'),
        image_token_index=words.id('<|patch|>')))


@architecture('perception_lm')
def build_perception_lm():
    words = Words(special=('<|start_header_id|>', '<|end_header_id|>', '<|eot_id|>'),
        names=dict(image_token='<|image|>', video_token='<|video|>'), bos='<|begin_of_text|>', eos='<|eot_id|>',
        add_bos=True)
    images = tf.PerceptionLMImageProcessor(tile_size=56, max_num_tiles=4, vision_input_type='thumb+tile',
        size=square(56))
    processor = tf.PerceptionLMProcessor(image_processor=images,
        video_processor=tf.PerceptionLMVideoProcessor(size=square(56)), tokenizer=words.tok, patch_size=14,
        pooling_ratio=2, chat_template=chat('<|image|>', bos='1', start='<|start_header_id|>', end='<|eot_id|>'))
    vision = dict(model_type='timm_wrapper', architecture='vit_pe_core_large_patch14_336', model_args=dict(depth=2,
        embed_dim=32, img_size=[56, 56], num_heads=4, global_pool='', use_post_transformer_norm=False,
        init_values=0.1, ref_feat_shape=[4, 4]), do_pooling=True, global_pool='map', num_features=32, hidden_size=32)
    return (processor, tf.PerceptionLMConfig(text_config=text(words, 'llama'), vision_config=vision,
        image_token_id=words.id('<|image|>'), video_token_id=words.id('<|video|>'), projector_pooling_ratio=2,
        vision_use_cls_token=True))


COHERE_TOKENS = dict(special=('<|START_OF_TURN_TOKEN|>', '<|END_OF_TURN_TOKEN|>', 'TILE_1', 'TILE_2', 'TILE_GLOBAL'),
    names=dict(image_token='<image>', start_of_img_token='<|START_OF_IMG|>', end_of_img_token='<|END_OF_IMG|>',
    img_patch_token='<|IMG_PATCH|>', img_line_break_token='<|IMG_LINE_BREAK|>', boi_token='<|START_OF_IMG|>',
    eoi_token='<|END_OF_IMG|>', img_line_break='<|IMG_LINE_BREAK|>'), bos='<BOS_TOKEN>', eos='<|END_OF_TURN_TOKEN|>',
    add_bos=True)


def cohere_text(words, **m):
    return text(words, 'cohere2', logit_scale=0.25, sliding_window=4096, layer_types=['sliding_attention',
        'full_attention'], tie_word_embeddings=True, **m)


@architecture('aya_vision')
def build_aya_vision():
    words = Words(**COHERE_TOKENS)
    images = tf.GotOcr2ImageProcessor(size=square(56), crop_to_patches=True, min_patches=1, max_patches=4)
    processor = tf.AyaVisionProcessor(image_processor=images, tokenizer=words.tok, patch_size=14, img_size=56,
        downsample_factor=2, chat_template=chat('<image>', bos='1', start='<|START_OF_TURN_TOKEN|>',
        end='<|END_OF_TURN_TOKEN|>'))
    return (processor, tf.AyaVisionConfig(text_config=cohere_text(words), vision_config=siglip(),
        image_token_index=words.id('<|IMG_PATCH|>'), downsample_factor=2, alignment_intermediate_size=64,
        tie_word_embeddings=True))


@architecture('cohere2_vision')
def build_cohere2_vision():
    words = Words(**COHERE_TOKENS | dict(names=COHERE_TOKENS['names'] | dict(image_token='<|IMG_PATCH|>')))
    images = tf.Cohere2VisionImageProcessor(size=square(64), patch_size=2, crop_to_patches=True, min_patches=1,
        max_patches=4, downsample_factor=2)
    processor = tf.Cohere2VisionProcessor(image_processor=images, tokenizer=words.tok,
        chat_template=chat('<|IMG_PATCH|>', bos='1', start='<|START_OF_TURN_TOKEN|>', end='<|END_OF_TURN_TOKEN|>'))
    return (processor, tf.Cohere2VisionConfig(text_config=cohere_text(words), vision_config=siglip(image_size=64,
        patch_size=16), image_token_id=words.id('<|IMG_PATCH|>'), downsample_factor=2,
        alignment_intermediate_size=64, tie_word_embeddings=True))


GLM_TOKENS = dict(special=('[gMASK]', '<sop>', '<|user|>', '<|assistant|>', '<|begin_of_image|>', '<|end_of_image|>',
    '<|begin_of_video|>', '<|end_of_video|>'), names=dict(image_token='<|image|>', video_token='<|video|>'),
    eos='<|endoftext|>')


GLM_CHAT = (
    "[gMASK]<sop>{% for message in messages %}<|user|>\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|begin_of_image|><|image|><|end_of_image|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def glm_ids(words):
    return dict(image_token_id=words.id('<|image|>'), video_token_id=words.id('<|video|>'),
        image_start_token_id=words.id('<|begin_of_image|>'), image_end_token_id=words.id('<|end_of_image|>'),
        video_start_token_id=words.id('<|begin_of_video|>'), video_end_token_id=words.id('<|end_of_video|>'))


GLM_VISION = dict(depth=2, hidden_size=32, num_heads=4, image_size=56, patch_size=14, out_hidden_size=64,
    intermediate_size=64, spatial_merge_size=2)


def glm(cfg, proc, ipc, vpc, **decoder):
    words = Words(**GLM_TOKENS)
    sizes = dict(size={'shortest_edge': 4 * 28 * 28, 'longest_edge': 32 * 28 * 28})
    processor = proc(image_processor=ipc(**sizes), tokenizer=words.tok, video_processor=vpc(**sizes),
        chat_template=GLM_CHAT)
    decoder = text(words, **{'rope_parameters': mrope(2, 1, 1, partial_rotary_factor=0.5)} | decoder)
    return (processor, cfg(text_config=decoder, vision_config=GLM_VISION, **glm_ids(words)))


@architecture('glm4v')
def build_glm4v():
    return glm(tf.Glm4vConfig, tf.Glm4vProcessor, tf.Glm4vImageProcessor, tf.Glm4vVideoProcessor, kind='glm4v_text')


@architecture('glm4v_moe')
def build_glm4v_moe():
    return glm(tf.Glm4vMoeConfig, tf.Glm4vProcessor, tf.Glm4vImageProcessor, tf.Glm4vVideoProcessor,
        kind='glm4v_moe_text', n_routed_experts=4, num_experts_per_tok=2, n_shared_experts=1,
        moe_intermediate_size=32, first_k_dense_replace=1)


@architecture('glm46v')
def build_glm46v():
    return glm(tf.Glm46VConfig, tf.Glm46VProcessor, tf.Glm46VImageProcessor, tf.Glm46VVideoProcessor,
        kind='glm4v_text')


@architecture('glm_ocr')
def build_glm_ocr():
    return glm(tf.GlmOcrConfig, tf.Glm46VProcessor, tf.Glm46VImageProcessor, tf.Glm46VVideoProcessor,
        kind='glm_ocr_text')


INTERN_TOKENS = dict(special=CHAT_MARKS, names=dict(start_image_token='<img>', end_image_token='</img>',
    context_image_token='<IMG_CONTEXT>', video_token='<video>'))


@architecture('internvl')
def build_internvl():
    words = Words(**INTERN_TOKENS)
    images = tf.GotOcr2ImageProcessor(size=square(56), crop_to_patches=True, min_patches=1, max_patches=4)
    processor = tf.InternVLProcessor(image_processor=images, tokenizer=words.tok,
        video_processor=tf.InternVLVideoProcessor(size=square(56)), image_seq_length=4,
        chat_template=chat('<IMG_CONTEXT>\n'))
    return (processor, tf.InternVLConfig(text_config=text(words, 'qwen2'), vision_config=dict(hidden_size=32,
        intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=[56, 56], patch_size=[14, 14]),
        image_token_id=words.id('<IMG_CONTEXT>'), image_seq_length=4, downsample_ratio=0.5))


@architecture('got_ocr2')
def build_got_ocr2():
    words = Words(special=(*CHAT_MARKS, '<img>', '</img>', '<imgpad>'), names=dict(image_token='<imgpad>'))
    images = tf.GotOcr2ImageProcessor(size=square(64))
    processor = tf.GotOcr2Processor(image_processor=images, tokenizer=words.tok,
        chat_template=chat('<img><imgpad></img>\n'))
    return (processor, tf.GotOcr2Config(text_config=text(words, 'qwen2'), vision_config=dict(hidden_size=32,
        output_channels=64, num_hidden_layers=2, num_attention_heads=4, image_size=1024, patch_size=64,
        window_size=4, global_attn_indexes=[1], mlp_dim=64), image_token_index=words.id('<imgpad>'),
        image_seq_length=16))


@architecture('ovis2')
def build_ovis2():
    marks = [f'<IMG_{config}>' for config in ('START', 'END', 'GRID', 'COL', 'ROW')]
    words = Words(special=(*CHAT_MARKS, '<image>', '<IMG_ATOM>', *marks), names=dict(image_token='<image>'))
    images = tf.Ovis2ImageProcessor(size=square(56), crop_to_patches=True, min_patches=1, max_patches=4)
    processor = tf.Ovis2Processor(image_processor=images, tokenizer=words.tok, image_seq_length=4,
        chat_template=chat('<image>\n'))
    return (processor, tf.Ovis2Config(text_config=text(words, 'qwen2'), vision_config=dict(hidden_size=32,
        intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=56, patch_size=14,
        vocab_size=48, hidden_stride=2, num_visual_indicator_tokens=5), image_token_id=words.id('<IMG_ATOM>'),
        visual_indicator_token_ids=[words.id(number_of) for number_of in marks], vocab_size=words.V, hidden_size=64))


@architecture('lfm2_vl')
def build_lfm2_vl():
    words = Words(special=(*CHAT_MARKS, '<|img_row_1_col_1|>', '<|img_row_1_col_2|>', '<|img_row_2_col_1|>',
        '<|img_row_2_col_2|>'), names=dict(image_token='<image>', image_start_token='<|image_start|>',
        image_end_token='<|image_end|>', image_thumbnail='<|img_thumbnail|>'), bos='<|startoftext|>',
        eos='<|im_end|>', add_bos=True)
    images = tf.Lfm2VlImageProcessor(tile_size=64, min_image_tokens=4, max_image_tokens=16, encoder_patch_size=16,
        downsample_factor=2, min_tiles=2, max_tiles=4, do_image_splitting=False, max_num_patches=64)
    processor = tf.Lfm2VlProcessor(image_processor=images, tokenizer=words.tok, chat_template=chat('<image>',
        bos='1'))
    decoder = text(words, 'lfm2', layer_types=['conv', 'full_attention'], tie_word_embeddings=True)
    decoder.pop('head_dim')
    return (processor, tf.Lfm2VlConfig(text_config=decoder, vision_config=dict(model_type='siglip2_vision_model',
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_patches=16,
        patch_size=16, vision_use_head=False), image_token_id=words.id('<image>'), projector_hidden_size=32,
        downsample_factor=2, tie_word_embeddings=True))


@architecture('deepseek_vl')
def build_deepseek_vl():
    words = Words(names=dict(image_token='<image_placeholder>'), bos='<bos>', add_bos=True)
    images = tf.DeepseekVLImageProcessor(size=square(56), min_size=14)
    processor = tf.DeepseekVLProcessor(image_processor=images, tokenizer=words.tok, num_image_tokens=16,
        chat_template=LLAVA_CHAT.replace('<image>', '<image_placeholder>'))
    return (processor, tf.DeepseekVLConfig(text_config=text(words, 'llama'), vision_config=siglip(),
        image_token_id=words.id('<image_placeholder>'), tie_word_embeddings=False))


@architecture('deepseek_vl_hybrid')
def build_deepseek_vl_hybrid():
    words = Words(names=dict(image_token='<image_placeholder>'), bos='<bos>', add_bos=True)
    images = tf.DeepseekVLHybridImageProcessor(size=square(64), min_size=14, high_res_size=square(128))
    processor = tf.DeepseekVLHybridProcessor(image_processor=images, tokenizer=words.tok, num_image_tokens=16,
        chat_template=LLAVA_CHAT.replace('<image>', '<image_placeholder>'))
    return (processor, tf.DeepseekVLHybridConfig(text_config=text(words, 'llama'), vision_config=siglip(image_size=64,
        patch_size=16), high_res_vision_config=dict(model_type='sam_vision_model', hidden_size=32,
        output_channels=16, num_hidden_layers=2, num_attention_heads=4, image_size=128, patch_size=32, window_size=2,
        global_attn_indexes=[1], mlp_dim=64, num_pos_feats=8), image_token_id=words.id('<image_placeholder>'),
        tie_word_embeddings=False))


@architecture('janus')
def build_janus():
    words = Words(names=dict(image_token='<image_placeholder>', boi_token='<begin_of_image>',
        eoi_token='<end_of_image>'), bos='<bos>', add_bos=True)
    images = tf.JanusImageProcessor(size=square(56), min_size=14)
    processor = tf.JanusProcessor(image_processor=images, tokenizer=words.tok, num_image_tokens=16,
        chat_template=LLAVA_CHAT.replace('<image>', '<image_placeholder>'))
    return (processor, tf.JanusConfig(text_config=text(words, 'llama'), vision_config=dict(hidden_size=32,
        num_hidden_layers=2, num_attention_heads=4, image_size=56, patch_size=14, projection_dim=64,
        num_image_tokens=16, mlp_ratio=2.0), vq_config=dict(embed_dim=4, num_embeddings=16, latent_channels=8,
        base_channels=32, channel_multiplier=[1, 1], num_res_blocks=1, num_patches=4, projection_dim=64,
        image_token_embed_dim=64), image_token_id=words.id('<image_placeholder>'), tie_word_embeddings=False))


@architecture('aria')
def build_aria():
    words = Words(special=CHAT_MARKS, names=dict(image_token='<|img|>'))
    images = tf.AriaImageProcessor(max_image_size=490, min_image_size=336)
    processor = tf.AriaProcessor(image_processor=images, tokenizer=words.tok, size_conversion={490: 8, 980: 16},
        chat_template=chat('<|img|>'))
    decoder = text(words, 'aria_text', moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1)
    return (processor, tf.AriaConfig(text_config=decoder, vision_config=dict(model_type='idefics3_vision',
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=490,
        patch_size=70), projector_patch_to_query_dict={49: 8, 196: 16}, image_token_index=words.id('<|img|>'),
        vision_feature_layer=-1))


@architecture('gemma4')
def build_gemma4():
    names = dict(GEMMA_TOKENS)
    names['special'] = ('<start_of_turn>', '<end_of_turn>', '<|video|>')
    names['names'] = dict(image_token='<|image|>', boi_token='<|image>', eoi_token='<image|>',
        audio_token='<|audio|>', boa_token='<|audio>', eoa_token='<audio|>')
    words = Words(**names)
    images = tf.Gemma4ImageProcessor(patch_size=8, max_soft_tokens=70, pooling_kernel_size=2)
    processor = tf.Gemma4Processor(feature_extractor=tf.Gemma4AudioFeatureExtractor(), image_processor=images,
        tokenizer=words.tok, video_processor=tf.Gemma4VideoProcessor(patch_size=8, max_soft_tokens=70,
        pooling_kernel_size=2), image_seq_length=70, chat_template=GEMMA_CHAT.replace('<start_of_image>',
        '<|image|>'))
    size = len(processor.tokenizer)
    decoder = text(words, 'gemma4_text', vocab_size=size, num_hidden_layers=4, layer_types=['sliding_attention',
        'full_attention'] * 2, sliding_window=512, final_logit_softcapping=5.0, vocab_size_per_layer_input=size,
        hidden_size_per_layer_input=8, num_kv_shared_layers=2, global_head_dim=16, tie_word_embeddings=True)
    vision = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, head_dim=8, patch_size=8, pooling_kernel_size=2, position_embedding_size=256,
        default_output_length=70)
    return (processor, tf.Gemma4Config(text_config=decoder, vision_config=vision,
        image_token_id=words.id('<|image|>'), boi_token_id=words.id('<|image>'), eoi_token_id=words.id('<image|>'),
        video_token_id=processor.tokenizer.convert_tokens_to_ids('<|video|>'), audio_token_id=words.id('<|audio|>'),
        boa_token_id=words.id('<|audio>'), eoa_token_index=words.id('<audio|>'), tie_word_embeddings=True))


@architecture('internvl-gptoss')
def build_internvl_gptoss():
    words = Words(**INTERN_TOKENS)
    images = tf.GotOcr2ImageProcessor(size=square(140), crop_to_patches=True, min_patches=1, max_patches=4)
    processor = tf.InternVLProcessor(image_processor=images, tokenizer=words.tok,
        video_processor=tf.InternVLVideoProcessor(size=square(140)), image_seq_length=25,
        chat_template=chat('<IMG_CONTEXT>\n'))
    decoder = text(words, 'gpt_oss', num_local_experts=4, num_experts_per_tok=2, sliding_window=128,
        layer_types=['sliding_attention', 'full_attention'], rope_parameters={'rope_type': 'default',
        'rope_theta': 10000.0})
    return (processor, tf.InternVLConfig(text_config=decoder, vision_config=dict(hidden_size=32, intermediate_size=64,
        num_hidden_layers=2, num_attention_heads=4, image_size=[140, 140], patch_size=[14, 14]),
        image_token_id=words.id('<IMG_CONTEXT>'), image_seq_length=25, downsample_ratio=0.5))


@architecture('video_llama_3')
def build_video_llama_3():
    words = Words(special=CHAT_MARKS, names=dict(image_token='<image>', video_token='<video>'))
    sizes = dict(patch_size=14, min_pixels=16 * 196, max_pixels=64 * 196)
    processor = tf.VideoLlama3Processor(image_processor=tf.VideoLlama3ImageProcessor(**sizes), tokenizer=words.tok,
        video_processor=tf.VideoLlama3VideoProcessor(), chat_template=chat('<image>'))
    return (processor, tf.VideoLlama3Config(text_config=text(words, 'qwen2'), vision_config=dict(hidden_size=32,
        intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, patch_size=14),
        image_token_id=words.id('<image>'), video_token_id=words.id('<video>')))


@architecture('paddleocr_vl')
def build_paddleocr_vl():
    words = Words(special=(*CHAT_MARKS, '<|IMAGE_START|>', '<|IMAGE_END|>'),
        names=dict(image_token='<|IMAGE_PLACEHOLDER|>'), bos='<s>', eos='</s>')
    sizes = dict(patch_size=14, min_pixels=16 * 196, max_pixels=64 * 196)
    processor = tf.PaddleOCRVLProcessor(image_processor=tf.PaddleOCRVLImageProcessor(**sizes), tokenizer=words.tok,
        chat_template=chat('<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>'))
    return (processor, tf.PaddleOCRVLConfig(text_config=text(words, 'paddleocr_vl_text', rope_parameters=mrope(2, 3,
        3)), vision_config=dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        patch_size=14, image_size=56), image_token_id=words.id('<|IMAGE_PLACEHOLDER|>'),
        vision_start_token_id=words.id('<|IMAGE_START|>'), vision_end_token_id=words.id('<|IMAGE_END|>'),
        tie_word_embeddings=False))


@architecture('exaone4_5')
def build_exaone4_5():
    words = Words(**QWEN_TOKENS)
    decoder = text(words, 'exaone4', layer_types=['sliding_attention', 'full_attention'], sliding_window=4096,
        sliding_window_pattern=2)
    config = tf.Exaone4_5_Config(text_config=decoder, vision_config=dict(depth=2, hidden_size=32,
        intermediate_size=64, num_heads=4, num_key_value_heads=2, out_hidden_size=64, window_size=56,
        fullatt_block_indexes=[1]), image_token_id=words.id('<|image_pad|>'),
        video_token_id=words.id('<|video_pad|>'))
    return (qwen_processor(tf.Exaone4_5_Processor, words), config)


@architecture('hyperclovax_vision_v2')
def build_hyperclovax_vision_v2():
    words = Words(**QWEN_TOKENS)
    config = tf.HyperCLOVAXVisionV2Config(text_config=text(words, 'hyperclovax', logits_scaling=8.0,
        attention_multiplier=0.25), vision_config=dict(model_type='qwen2_5_vl_vision', depth=2, hidden_size=32,
        intermediate_size=64, num_heads=4, out_hidden_size=64, window_size=56, fullatt_block_indexes=[1]),
        image_token_id=words.id('<|image_pad|>'), video_token_id=words.id('<|video_pad|>'),
        tie_word_embeddings=False)
    return (qwen_processor(tf.HyperCLOVAXVisionV2Processor, words), config)


@architecture('ernie4_5_vl_moe')
def build_ernie4_5_vl_moe():
    words = Words(special=CHAT_MARKS, names=dict(image_token='<|IMAGE_PLACEHOLDER|>', image_end_token='<|IMAGE_END|>',
        image_start_token='<|IMAGE_START|>', video_token='<|VIDEO_PLACEHOLDER|>', video_end_token='<|VIDEO_END|>',
        video_start_token='<|VIDEO_START|>'))
    sizes = dict(size={'shortest_edge': 16 * 196, 'longest_edge': 64 * 196})
    processor = tf.Ernie4_5_VLMoeProcessor(image_processor=tf.Ernie4_5_VLMoeImageProcessor(**sizes),
        tokenizer=words.tok, video_processor=tf.Ernie4_5_VLMoeVideoProcessor(**sizes, draw_on_frames=False),
        chat_template=chat('<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>'))
    decoder = text(words, 'ernie4_5_vl_moe_text', moe_intermediate_size=[32, 32], moe_k=2, moe_num_experts=4,
        moe_num_shared_experts=1, mlp_layer_types=['dense', 'sparse'], rope_parameters=mrope(3, 3, 2),
        tie_word_embeddings=True)
    return (processor, tf.Ernie4_5_VLMoeConfig(text_config=decoder, vision_config=dict(depth=2, hidden_size=32,
        num_heads=4, intermediate_size=64), image_token_id=words.id('<|IMAGE_PLACEHOLDER|>'),
        image_start_token_id=words.id('<|IMAGE_START|>'), image_end_token_id=words.id('<|IMAGE_END|>'),
        video_token_id=words.id('<|VIDEO_PLACEHOLDER|>'), video_start_token_id=words.id('<|VIDEO_START|>'),
        video_end_token_id=words.id('<|VIDEO_END|>')))


@architecture('molmo2')
def build_molmo2():
    sp = ('<im_start>', '<im_end>', '<im_patch>', '<im_col>', '<low_res_im_start>', '<frame_start>', '<frame_end>',
        '<im_low>')
    words = Words(special=(*CHAT_MARKS, *sp), names=dict(image_token='<|image|>', video_token='<|video|>'),
        eos='<|endoftext|>', bos='<|bos|>')
    images = tf.Molmo2ImageProcessor(size=square(56), max_crops=2, overlap_margins=[1, 1], patch_size=14,
        pooling_size=[2, 2])
    processor = tf.Molmo2Processor(image_processor=images, video_processor=tf.Molmo2VideoProcessor(size=square(56)),
        tokenizer=words.tok, chat_template=chat('<|image|>'))
    vision = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=4, head_dim=8, image_size=[56, 56], patch_size=14, num_position_embeddings=16)
    adapter = dict(vision_feature_layer=[2, 1], hidden_size=32, num_attention_heads=4, num_key_value_heads=4,
        head_dim=8, intermediate_size=64, text_hidden_size=64)
    return (processor, tf.Molmo2Config(text_config=text(words, 'molmo2_text', additional_vocab_size=8,
        rope_scaling_layers=[0, 1]), vision_config=vision, adapter_config=adapter,
        image_start_token_id=words.id('<im_start>'), low_res_image_start_token_id=words.id('<low_res_im_start>'),
        image_end_token_id=words.id('<im_end>'), image_patch_id=words.id('<im_patch>'),
        frame_start_token_id=words.id('<frame_start>'), frame_end_token_id=words.id('<frame_end>')))


@architecture('minicpmv4_6')
def build_minicpmv4_6():
    names = dict(image_token='<|image_pad|>', video_token='<|video_pad|>', image_start_token='<image>',
        image_end_token='</image>', slice_start_token='<slice>', slice_end_token='</slice>',
        image_id_start_token='<image_id>', image_id_end_token='</image_id>')
    words = Words(special=CHAT_MARKS, names=names)
    images = tf.MiniCPMV4_6ImageProcessor(patch_size=16, scale_resolution=128, max_slice_nums=4)
    processor = tf.MiniCPMV4_6Processor(image_processor=images,
        video_processor=tf.MiniCPMV4_6VideoProcessor(patch_size=16, scale_resolution=128), tokenizer=words.tok,
        chat_template=chat('<|image_pad|>'))
    return (processor, tf.MiniCPMV4_6Config(text_config=text(words, 'qwen3_5_text', **QWEN35_TEXT),
        vision_config=dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        image_size=128, patch_size=16, insert_layer_id=0), insert_layer_id=0, image_size=128,
        image_token_id=words.id('<|image_pad|>'), video_token_id=words.id('<|video_pad|>')))


@architecture('kimi_k25')
def build_kimi_k25():
    words = Words(special=('<|im_user|>', '<|im_assistant|>', '<|im_middle|>', '<|im_end|>', '<|media_start|>',
        '<|media_content|>', '<|media_end|>'), names=dict(image_token='<|media_pad|>',
        video_token='<|kimi_k25_video_placeholder|>'), bos='[BOS]', eos='[EOS]')
    images = tf.Kimi_K25ImageProcessor(patch_size=14)
    processor = tf.Kimi_K25Processor(image_processor=images, tokenizer=words.tok,
        video_processor=tf.Kimi_K25VideoProcessor(),
        chat_template=chat('<|media_start|>image<|media_content|><|media_pad|><|media_end|>', start='<|im_user|>'))
    decoder = text(words, 'deepseek_v3', moe_intermediate_size=32, n_shared_experts=1, n_routed_experts=4,
        kv_lora_rank=16, q_lora_rank=16, qk_rope_head_dim=8, v_head_dim=16, qk_nope_head_dim=16, n_group=1,
        topk_group=1, num_experts_per_tok=2, first_k_dense_replace=1, num_key_value_heads=4)
    decoder.pop('head_dim')
    return (processor, tf.Kimi_K25Config(text_config=decoder, vision_config=dict(hidden_size=32, intermediate_size=64,
        num_hidden_layers=2, num_attention_heads=4, patch_size=14, pos_emb_height=8, pos_emb_width=8),
        projection_hidden_size=32, image_token_id=words.id('<|media_pad|>'),
        video_token_id=words.id('<|kimi_k25_video_placeholder|>'), tie_word_embeddings=False))


@architecture('granite4_vision')
def build_granite4_vision():
    words = Words(**LLAVA_TOKENS)
    pins = [[56, 112], [112, 56], [112, 112]]
    images = tf.LlavaNextImageProcessor(size={'shortest_edge': 56}, crop_size=square(56), image_grid_pinpoints=pins)
    processor = tf.Granite4VisionProcessor(image_processor=images, tokenizer=words.tok, patch_size=14,
        vision_feature_select_strategy='full', downsample_rate='2/4', chat_template=LLAVA_CHAT)
    decoder = text(words, 'granite4_vision_text', num_hidden_layers=4, logits_scaling=8.0)
    decoder.pop('head_dim')
    qformer = dict(model_type='blip_2_qformer', hidden_size=32, num_hidden_layers=1, num_attention_heads=4,
        intermediate_size=64, encoder_hidden_size=32, vocab_size=8)
    return (processor, tf.Granite4VisionConfig(text_config=decoder, vision_config=siglip(num_attention_heads=4,
        hidden_size=64), qformer_config=qformer | dict(hidden_size=64, encoder_hidden_size=64),
        image_token_index=words.id('<image>'), image_grid_pinpoints=pins, vision_feature_select_strategy='full',
        downsample_rate='2/4', deepstack_layer_map=[[-1, 0], [-2, 1]], spatial_target_layers=[2, 3]))


@architecture('emu3')
def build_emu3():
    vision = [f'<|visual token {number_of:06}|>' for number_of in range(16)]
    words = Words(special=(*vision, '<|extra_200|>', *[str(number_of) for number_of in ()]),
        names=dict(image_token='<image>', boi_token='<|image start|>', eoi_token='<|image end|>',
        image_wrapper_token='<|image token|>', eof_token='<|extra_201|>'), bos='<bos>', eos='<eos>', pad='<pad>',
        add_bos=True)
    images = tf.Emu3ImageProcessor(min_pixels=32 * 32, max_pixels=64 * 64, spatial_factor=8)
    processor = tf.Emu3Processor(image_processor=images, tokenizer=words.tok, chat_template=LLAVA_CHAT)
    vocabulary = {words.tok.convert_ids_to_tokens(number_of): number_of for number_of in range(words.V)} | {}
    return (processor, tf.Emu3Config(text_config=text(words, 'emu3_text_model'), vq_config=dict(codebook_size=16,
        embed_dim=4, latent_channels=4, base_channels=32, channel_multiplier=[1, 1, 1, 1], num_res_blocks=1,
        hidden_size=32, attn_resolutions=[3]), vocabulary_map=vocabulary, image_token_id=words.id('<image>')))


@architecture('chameleon')
def build_chameleon():
    codes = [f'IMGIMG{chr(65 + number_of)}Z' for number_of in range(16)]
    words = Words(special=(*codes, '<reserved08706>'), names=dict(image_token='<image>', boi_token='<racm3:break>',
        eoi_token='<eoss>', sep_token='<reserved08706>'), bos='<s>', eos='</s>', add_bos=True)
    processor = tf.ChameleonProcessor(image_processor=tf.ChameleonImageProcessor(size={'shortest_edge': 32},
        crop_size=square(32)), tokenizer=words.tok, image_seq_length=256, image_token='<image>')
    processor.chat_template = LLAVA_CHAT
    vocabulary = {words.tok.convert_ids_to_tokens(number_of): number_of for number_of in range(words.V)}
    decoder = text(words, 'chameleon')
    decoder.pop('model_type')
    decoder.pop('head_dim')
    return (processor, tf.ChameleonConfig(**decoder, vq_config=dict(embed_dim=8, num_embeddings=16, latent_channels=8,
        resolution=32, base_channels=32, channel_multiplier=[1, 1], num_res_blocks=1, attn_type='none'),
        vocabulary_map=vocabulary, image_token_id=words.id('<image>')))


@architecture('fuyu')
def build_fuyu():
    words = Words(special=('<s>', '<0x04>'), names=dict(image_token='|SPEAKER|', image_newline_token='|NEWLINE|',
        boa_token='<0x04>'), bos='<s>', eos='</s>')
    processor = tf.FuyuProcessor(image_processor=tf.FuyuImageProcessor(size=square(60), patch_size=square(30)),
        tokenizer=words.tok)
    processor.chat_template = LLAVA_CHAT.replace('<image>\n', '')
    decoder = text(words, 'persimmon')
    decoder.pop('head_dim')
    return (processor, tf.FuyuConfig(text_config=decoder, image_size=60, patch_size=30,
        image_token_id=words.id('|SPEAKER|')))


def qformer_config(kind, **m):
    return dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=600,
        encoder_hidden_size=32, cross_attention_frequency=1) | m


def blip_vision():
    return dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=56,
        patch_size=14)


def blip2(lang):
    words = Words(special=('<image>',), names=dict(image_token='<image>'), bos='</s>', eos='</s>', pad='<pad>',
        add_bos=lang == 'opt')
    processor = tf.Blip2Processor(image_processor=tf.BlipImageProcessor(size=square(56)), tokenizer=words.tok,
        num_query_tokens=4)
    processor.chat_template = words_only('Question: ', ' Answer:')
    size = len(processor.tokenizer)
    decoder = dict(model_type='opt', vocab_size=size, hidden_size=64, num_hidden_layers=2, ffn_dim=96,
        num_attention_heads=4, word_embed_proj_dim=64, max_position_embeddings=2048, pad_token_id=words.pad,
        bos_token_id=words.bos, eos_token_id=words.eos, dropout=0.0) if lang == 'opt' else dict(model_type='t5',
        vocab_size=size, d_model=64, d_kv=16, d_ff=96, num_layers=2, num_decoder_layers=2, num_heads=4,
        pad_token_id=words.pad, eos_token_id=words.eos, decoder_start_token_id=words.pad, is_gated_act=True,
        feed_forward_proj='gated-gelu', tie_word_embeddings=False)
    return (processor, tf.Blip2Config(vision_config=blip_vision(), qformer_config=qformer_config('blip_2_qformer'),
        text_config=decoder, num_query_tokens=4,
        image_token_index=processor.tokenizer.convert_tokens_to_ids('<image>')))


@architecture('blip2-opt')
def build_blip2_opt():
    return blip2('opt')


@architecture('blip2-t5')
def build_blip2_t5():
    return blip2('t5')


def instructblip(lang):
    words = Words(special=('<image>',), names=dict(image_token='<image>'), bos='<s>', eos='</s>', pad='<pad>',
        add_bos=lang != 't5')
    qformer = Words(pad='<pad>', eos='</s>')
    processor = tf.InstructBlipProcessor(image_processor=tf.BlipImageProcessor(size=square(56)), tokenizer=words.tok,
        qformer_tokenizer=qformer.tok, num_query_tokens=4)
    processor.chat_template = words_only('', '')
    decoder = text(words, 'llama', vocab_size=len(processor.tokenizer))
    return (processor, tf.InstructBlipConfig(vision_config=blip_vision(), qformer_config=qformer_config('x'),
        text_config=decoder, num_query_tokens=4,
        image_token_index=processor.tokenizer.convert_tokens_to_ids('<image>')))


@architecture('instructblip')
def build_instructblip():
    return instructblip('llama')


@architecture('florence2')
def build_florence2():
    words = Words(names=dict(image_token='<image>'), bos='<s>', eos='</s>', pad='<pad>', add_bos=True)
    images = tf.CLIPImageProcessor(size=square(64), crop_size=square(64))
    images.image_seq_length = 5
    processor = tf.Florence2Processor(image_processor=images, tokenizer=words.tok, num_additional_image_tokens=1)
    processor.chat_template = words_only('', '')
    decoder = dict(model_type='bart', vocab_size=words.V, d_model=64, encoder_layers=2, decoder_layers=2,
        encoder_ffn_dim=96, decoder_ffn_dim=96, encoder_attention_heads=4, decoder_attention_heads=4,
        pad_token_id=words.pad, bos_token_id=words.bos, eos_token_id=words.eos, decoder_start_token_id=words.eos,
        forced_eos_token_id=None, dropout=0.0)
    vision = dict(depths=[1, 1, 1, 1], embed_dim=[8, 16, 32, 64], num_heads=[1, 2, 4, 8], num_groups=[1, 2, 4, 8],
        window_size=4, projection_dim=64)
    return (processor, tf.Florence2Config(text_config=decoder, vision_config=vision,
        image_token_id=words.id('<image>')))


@architecture('kosmos2')
def build_kosmos2():
    words = Words(special=('<image>', '</image>', '<phrase>', '</phrase>', '<object>', '</object>', '<grounding>',
        '</doc>'), names=None, bos='<s>', eos='</s>', pad='<pad>', unk='<unk>')
    processor = tf.Kosmos2Processor(image_processor=tf.CLIPImageProcessor(size={'shortest_edge': 56},
        crop_size=square(56)), tokenizer=words.tok, num_patch_index_tokens=16)
    processor.chat_template = words_only('<grounding> Question: ', ' Answer:')
    size = len(processor.tokenizer)
    return (processor, tf.Kosmos2Config(text_config=dict(vocab_size=size, embed_dim=64, layers=2, ffn_dim=96,
        attention_heads=4, max_position_embeddings=2048, dropout=0.0, attention_dropout=0.0, pad_token_id=words.pad,
        bos_token_id=words.bos, eos_token_id=words.eos), vision_config=dict(hidden_size=32, intermediate_size=64,
        num_hidden_layers=2, num_attention_heads=4, image_size=56, patch_size=14), latent_query_num=8))


@architecture('git')
def build_git():
    words = Words(bos='[CLS]', eos='[SEP]', pad='[PAD]', add_bos=True)
    processor = tf.GitProcessor(image_processor=tf.CLIPImageProcessor(size={'shortest_edge': 56},
        crop_size=square(56)), tokenizer=words.tok)
    processor.chat_template = words_only('', '')
    return (processor, tf.GitConfig(vision_config=dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, image_size=56, patch_size=14), vocab_size=words.V, hidden_size=64,
        num_hidden_layers=2, num_attention_heads=4, intermediate_size=96, pad_token_id=words.pad,
        bos_token_id=words.bos, eos_token_id=words.eos))


@architecture('blip')
def build_blip():
    words = Words(bos='[CLS]', eos='[SEP]', pad='[PAD]', add_bos=True)
    processor = tf.BlipProcessor(image_processor=tf.BlipImageProcessor(size=square(56)), tokenizer=words.tok)
    processor.chat_template = words_only('', '')
    return (processor, tf.BlipConfig(vision_config=blip_vision() | dict(projection_dim=32),
        text_config=dict(vocab_size=words.V, hidden_size=64, encoder_hidden_size=32, num_hidden_layers=2,
        num_attention_heads=4, intermediate_size=96, pad_token_id=words.pad, bos_token_id=words.bos,
        eos_token_id=words.eos, sep_token_id=words.eos)))


@architecture('phi4_multimodal', cls='Phi4MultimodalForCausalLM')
def build_phi4_multimodal():
    words = Words(special=('<|user|>', '<|assistant|>', '<|end|>'), names=dict(image_token='<|image|>',
        audio_token='<|audio|>'), eos='<|endoftext|>')
    processor = tf.Phi4MultimodalProcessor(image_processor=tf.Phi4MultimodalImageProcessor(size=square(56),
        patch_size=14, dynamic_hd=2), audio_processor=tf.Phi4MultimodalFeatureExtractor(), tokenizer=words.tok)
    processor.chat_template = chat('<|image|>', start='<|user|>', end='<|end|>')
    decoder = text(words, 'phi4_multimodal')
    [decoder.pop(k) for k in ('model_type', 'head_dim')]
    return (processor, tf.Phi4MultimodalConfig(**decoder, vision_config=dict(hidden_size=32, intermediate_size=64,
        num_hidden_layers=2, num_attention_heads=4, image_size=56, crop_size=56, patch_size=14,
        image_token_id=words.id('<|image|>')), audio_config=dict(hidden_size=32, intermediate_size=64, num_blocks=1,
        num_attention_heads=4, ext_pw_out_channel=32, depthwise_separable_out_channel=32, nemo_conv_channels=32,
        audio_token_id=words.id('<|audio|>'))))


@architecture('hunyuan_vl')
def build_hunyuan_vl():
    words = Words(special=(*CHAT_MARKS, '<im_newline>'), names=dict(image_token='<|image_pad|>',
        image_start_token='<im_start>', image_end_token='<im_end>', image_newline_token='<im_newline>'), bos='<bos>',
        eos='<eos>')
    processor = tf.HunYuanVLProcessor(image_processor=tf.HunYuanVLImageProcessor(min_pixels=64 * 64,
        max_pixels=128 * 128), tokenizer=words.tok, chat_template=chat('<im_start><|image_pad|><im_end>'))
    decoder = text(words, 'hunyuan_vl_text', rope_parameters={'rope_type': 'default', 'rope_theta': 10000.0,
        'xdrope_section': [2, 2, 2, 2]}, tie_word_embeddings=True)
    return (processor, tf.HunYuanVLConfig(text_config=decoder, vision_config=dict(hidden_size=32,
        intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, out_hidden_size=64,
        text_hidden_size=64, patch_size=16, img_max_token_num=64, max_image_size=128, min_image_size=64),
        image_token_id=words.id('<|image_pad|>'), im_start_id=words.id('<im_start>'), im_end_id=words.id('<im_end>'),
        im_newline_id=words.id('<im_newline>')))


@architecture('qianfan_ocr')
def build_qianfan_ocr():
    words = Words(special=(*CHAT_MARKS, '<image>'), names=dict(start_image_token='<img>', end_image_token='</img>',
        context_image_token='<IMG_CONTEXT>', video_token='<video>'))
    processor = tf.QianfanOCRProcessor(image_processor=tf.GotOcr2ImageProcessor(size=square(56), crop_to_patches=True,
        max_patches=4), tokenizer=words.tok, image_seq_length=4, chat_template=chat('<image>\n'))
    return (processor, tf.QianfanOCRConfig(text_config=text(words, 'qwen3'), vision_config=dict(hidden_size=32,
        intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=[56, 56], patch_size=[14, 14]),
        image_token_id=words.id('<IMG_CONTEXT>'), image_seq_length=4, downsample_ratio=0.5))


@architecture('step3p7')
def build_step3p7():
    words = Words(special=(*CHAT_MARKS, '<im_patch>', '<im_start>', '<im_end>', '<patch_start>', '<patch_end>',
        '<patch_newline>'), names=dict(image_token='<im_patch>'))
    processor = tf.Step3p7Processor(image_processor=tf.Step3p7ImageProcessor(size=square(56)), tokenizer=words.tok,
        chat_template=chat('<im_patch>'))
    decoder = text(words, 'step3p5', n_routed_experts=4, num_experts_per_tok=2, mlp_layer_types=['dense', 'sparse'],
        layer_types=['full_attention', 'sliding_attention'], sliding_window=512, moe_intermediate_size=32,
        share_expert_dim=32, num_sliding_attention_heads=4, query_pre_attn_scalar=16)
    return (processor, tf.Step3p7Config(text_config=decoder, vision_config=dict(hidden_size=32, intermediate_size=64,
        num_hidden_layers=2, num_attention_heads=4, image_size=56, patch_size=14, mlp_ratio=2.0,
        max_position_embeddings=16), image_token_id=words.id('<im_patch>')))


@architecture('qwen2_5_omni_thinker', cls='Qwen2_5OmniThinkerForConditionalGeneration')
def build_qwen2_5_omni_thinker():
    names = dict(image_token='<|IMAGE|>', audio_token='<|AUDIO|>', video_token='<|VIDEO|>',
        vision_bos_token='<|vision_bos|>', vision_eos_token='<|vision_eos|>', audio_bos_token='<|audio_bos|>',
        audio_eos_token='<|audio_eos|>')
    words = Words(special=CHAT_MARKS, names=names)
    processor = tf.Qwen2_5OmniProcessor(image_processor=tf.Qwen2VLImageProcessor(**qwen_sizes()),
        video_processor=tf.Qwen2VLVideoProcessor(**qwen_sizes()), feature_extractor=tf.WhisperFeatureExtractor(),
        tokenizer=words.tok, chat_template=chat('<|vision_bos|><|IMAGE|><|vision_eos|>'))
    config = tf.Qwen2_5OmniThinkerConfig(text_config=text(words, 'qwen2_5_omni_text', rope_parameters=mrope(2, 3, 3)),
        vision_config=dict(depth=2, hidden_size=32, intermediate_size=64, num_heads=4, out_hidden_size=64,
        window_size=56, fullatt_block_indexes=[1]), audio_config=dict(encoder_layers=1, encoder_attention_heads=4,
        encoder_ffn_dim=64, d_model=32, output_dim=64), audio_token_index=words.id('<|AUDIO|>'),
        image_token_index=words.id('<|IMAGE|>'), video_token_index=words.id('<|VIDEO|>'),
        audio_start_token_id=words.id('<|audio_bos|>'), audio_end_token_id=words.id('<|audio_eos|>'),
        vision_start_token_id=words.id('<|vision_bos|>'), vision_end_token_id=words.id('<|vision_eos|>'))
    return (processor, config)


@architecture('t5gemma2')
def build_t5gemma2():
    words = Words(**GEMMA_TOKENS)
    images = tf.Gemma3ImageProcessor(size=square(56))
    processor = tf.Gemma3Processor(image_processor=images, tokenizer=words.tok, image_seq_length=4,
        chat_template=GEMMA_CHAT)
    decoder = text(words, 't5gemma2_text', query_pre_attn_scalar=16, sliding_window=1024,
        layer_types=['sliding_attention', 'full_attention'], tie_word_embeddings=True)
    dx = dict(decoder, model_type='t5gemma2_decoder')
    return (processor, tf.T5Gemma2Config(encoder=dict(text_config=decoder, vision_config=siglip(),
        mm_tokens_per_image=4, boi_token_index=words.id('<start_of_image>'),
        eoi_token_index=words.id('<end_of_image>'), image_token_index=words.id('<image_soft_token>')), decoder=dx,
        image_token_index=words.id('<image_soft_token>'), tie_word_embeddings=True))


@architecture('aria-bf16', bf16=True)
def build_aria_bf16():
    return ARCHITECTURES['aria'][0]()


@architecture('deepseek_vl_hybrid-bf16', bf16=True)
def build_deepseek_vl_hybrid_bf16():
    return ARCHITECTURES['deepseek_vl_hybrid'][0]()


def gemma4(**more):
    processor, config = ARCHITECTURES['gemma4'][0]()
    found = config.to_dict()
    found['text_config'].update(more)
    found.pop('model_type', None)
    return (processor, tf.Gemma4Config(**found))


@architecture('gemma4-dense')
def build_gemma4_dense():
    return gemma4(num_kv_shared_layers=0, hidden_size_per_layer_input=0)


@architecture('minicpmv4_7')
def build_minicpmv4_7():
    processor, config = ARCHITECTURES['minicpmv4_6'][0]()
    words = processor.tokenizer
    other = tf.MiniCPMV4_7Processor(image_processor=processor.image_processor,
        video_processor=processor.video_processor, tokenizer=words, chat_template=processor.chat_template)
    number_of = words.convert_tokens_to_ids
    return (other, tf.MiniCPMV4_7Config(text_config=config.text_config.to_dict(), vision_config=dict(hidden_size=32,
        intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=128, patch_size=16,
        insert_layer_id=0), insert_layer_id=0, image_size=128, image_token_id=number_of('<|image_pad|>'),
        video_token_id=number_of('<|video_pad|>'), image_start_id=number_of('<image>'),
        image_end_id=number_of('</image>'), slice_start_id=number_of('<slice>'), slice_end_id=number_of('</slice>'),
        newline_id=number_of('Ċ')))


@architecture('lfm3_vl')
def build_lfm3_vl():
    words = Words(**QWEN_TOKENS | dict(bos='<|startoftext|>', add_bos=True))
    decoder = text(words, 'lfm3', layer_types=['conv', 'full_attention'], conv_L_cache=3, sliding_window=256,
        tie_word_embeddings=True)
    config = tf.Lfm3VlConfig(text_config=decoder, vision_config=dict(hidden_size=32, intermediate_size=64,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, patch_size=16, layer_types=['conv',
        'full_attention']), projector_hidden_size=32, tie_word_embeddings=True, **qwen_ids(words))
    images = tf.Qwen2VLImageProcessor(**qwen_sizes(16))
    videos = tf.Qwen2VLVideoProcessor(**qwen_sizes(16))
    return (tf.Lfm3VlProcessor(image_processor=images, tokenizer=words.tok, video_processor=videos,
        chat_template='{{ bos_token }}' + QWEN_CHAT), config)


@architecture('muse_glimmer')
def build_muse_glimmer():
    words = Words(special=('<|header_start|>', '<|header_end|>', '<|eot|>'), names=dict(image_token='<|patch|>',
        video_token='<|video|>', image_start_token='<|image_start|>', image_end_token='<|image_end|>'),
        bos='<|begin_of_text|>', eos='<|eot|>', add_bos=True)
    processor = tf.MuseGlimmerProcessor(image_processor=tf.MuseGlimmerImageProcessor(),
        video_processor=tf.MuseGlimmerVideoProcessor(), tokenizer=words.tok, chat_template=chat('<|patch|>', bos='1',
        start='<|header_start|>', end='<|eot|>'))
    decoder = text(words, 'muse_glimmer_text', layer_types=['sliding_attention', 'full_attention'],
        sliding_window=2048, final_logit_softcapping=20.0, output_multiplier=0.2, layer_rope_theta=[10000.0, 0])
    return (processor, tf.MuseGlimmerConfig(text_config=decoder, vision_config=dict(patch_size=14, pos_emb_height=8,
        pos_emb_width=8, num_attention_heads=4, num_hidden_layers=2, hidden_size=32, intermediate_size=64,
        max_position_embeddings=64, layer_types=['window_attention', 'full_attention']),
        image_token_id=words.id('<|patch|>'), video_token_id=words.id('<|video|>'), out_hidden_size=128,
        projector_hidden_size=64))


@architecture('no-template')
def build_no_template():
    processor, config = ARCHITECTURES['internvl'][0]()
    processor.chat_template = None
    processor.tokenizer.chat_template = None
    return (processor, config)


@architecture('text-only', cls='AutoModelForCausalLM')
def build_text_only():
    words = Words(special=CHAT_MARKS)
    words.tok.chat_template = chat('<image>')
    decoder = text(words, 'qwen2')
    decoder.pop('model_type')
    return (words.tok, tf.Qwen2Config(**decoder))


def spread(model, seed=0):
    """Random weights large enough that images and positions matter."""
    tied = getattr(model.config, 'tie_word_embeddings', False) or getattr(model.config.get_text_config(),
        'tie_word_embeddings', False)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() >= 2 and 'conv1d' not in name:
                fan = weight[0].numel() if weight.dim() != 3 else weight.shape[-2]
                words = 'embed' in name and weight.dim() == 2 and 'proj' not in name
                std = (0.2 if tied else 1.0) if words else 1.6 / max(1, fan) ** 0.5
                weight.copy_(torch.randn(weight.shape, generator=random) * std)
            elif name.endswith('gate') and weight.numel() == 1:
                weight.fill_(0.8)
            elif 'norm' in name and name.endswith('weight'):
                weight.add_(0.2 * torch.randn(weight.shape, generator=random))


# fmt: on


def build(name, folder):
    "A checkpoint of random weights in a folder; the folder."
    make, meta = ARCHITECTURES[name]
    logging.disable(logging.WARNING)
    try:
        processor, config = make()
        torch.manual_seed(0)
        kind = getattr(tf, meta.get("cls", "AutoModelForImageTextToText"))
        model = (kind.from_config(config) if hasattr(kind, "from_config") else kind(config)).eval().float()
        spread(model)
        if getattr(model.config, "tie_word_embeddings", False):
            model.tie_weights()
        tokenizer = getattr(processor, "tokenizer", processor)
        model.generation_config.eos_token_id = tokenizer.eos_token_id
        model.generation_config.pad_token_id = tokenizer.pad_token_id
        (model.bfloat16() if meta.get("bf16") else model).save_pretrained(folder)
        processor.save_pretrained(folder)
    finally:
        logging.disable(logging.NOTSET)
    if getattr(processor, "chat_template", None) and not list(folder.glob("chat_template*")):
        (folder / "chat_template.jinja").write_text(processor.chat_template)
    return folder


# fmt: off
CONTRASTIVE = {}  # name -> builder: no arguments, gives a model and a processor


def contrastive(make):
    "Adds a builder to `CONTRASTIVE`."
    CONTRASTIVE[make.__name__.removeprefix('build_')] = make
    return make


VISION = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=56,
    patch_size=14)


def caption(words, **more):
    "A text tower."
    words.tok.model_max_length = 64
    return dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, vocab_size=words.V, pad_token_id=words.pad) | more


def ends(words):
    "Numbers of the tokens around a text."
    return dict(eos_token_id=words.eos, bos_token_id=words.bos)


@contrastive
def build_clip():
    words = Words(bos='<|startoftext|>', eos='<|endoftext|>', add_bos=True)
    config = tf.CLIPConfig(text_config=caption(words, **ends(words)), vision_config=VISION, projection_dim=32)
    return tf.CLIPModel(config), tf.CLIPProcessor(tf.CLIPImageProcessor(**CLIP_SIZES), words.tok)


@contrastive
def build_metaclip_2():
    words = Words(bos='<s>', eos='</s>', add_bos=True)
    config = tf.MetaClip2Config(text_config=caption(words, **ends(words)), vision_config=VISION, projection_dim=32)
    return tf.MetaClip2Model(config), tf.CLIPProcessor(tf.CLIPImageProcessor(**CLIP_SIZES), words.tok)


@contrastive
def build_siglip():
    words = Words(eos='</s>')
    told = caption(words, projection_size=32, eos_token_id=words.eos, bos_token_id=words.eos)
    words.tok.model_max_length = 32
    config = tf.SiglipConfig(text_config=told, vision_config=VISION)
    return tf.SiglipModel(config), tf.SiglipProcessor(tf.SiglipImageProcessor(size=square(56)), words.tok)


@contrastive
def build_siglip2():
    words = Words(eos='<eos>')
    told = caption(words, projection_size=32, eos_token_id=words.eos, bos_token_id=words.eos)
    seen = {name: value for name, value in VISION.items() if name != 'image_size'} | {'num_patches': 16}
    images = tf.Siglip2ImageProcessor(patch_size=14, max_num_patches=16)
    config = tf.Siglip2Config(text_config=told, vision_config=seen)
    return tf.Siglip2Model(config), tf.Siglip2Processor(images, words.tok)


@contrastive
def build_altclip():
    words = Words(bos='<s>', eos='</s>', add_bos=True)
    told = caption(words, project_dim=32, **ends(words))
    config = tf.AltCLIPConfig(text_config=told, vision_config=VISION, projection_dim=32)
    return tf.AltCLIPModel(config), tf.AltCLIPProcessor(tf.CLIPImageProcessor(**CLIP_SIZES), words.tok)


@contrastive
def build_chinese_clip():
    words = Words(bos='[CLS]', eos='[SEP]', add_bos=True)
    config = tf.ChineseCLIPConfig(text_config=caption(words), vision_config=VISION, projection_dim=32)
    images = tf.ChineseCLIPImageProcessor(**CLIP_SIZES)
    return tf.ChineseCLIPModel(config), tf.ChineseCLIPProcessor(images, words.tok)


@contrastive
def build_align():
    words = Words(bos='[CLS]', eos='[SEP]', add_bos=True)
    seen = dict(image_size=64, width_coefficient=1.0, depth_coefficient=1.0, hidden_dim=32, kernel_sizes=[3, 3],
        in_channels=[32, 16], out_channels=[16, 24], strides=[1, 2], num_block_repeats=[1, 1], expand_ratios=[1, 6],
        depthwise_padding=[])
    config = tf.AlignConfig(text_config=caption(words), vision_config=seen, projection_dim=24)
    images = tf.EfficientNetImageProcessor(size=square(64), do_center_crop=False)
    return tf.AlignModel(config), tf.AlignProcessor(images, words.tok)
# fmt: on


def build_contrastive(name, folder):
    "A checkpoint of a model that ranks captions; the folder."
    torch.manual_seed(0)
    model, processor = CONTRASTIVE[name]()
    spread(model.eval())
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
