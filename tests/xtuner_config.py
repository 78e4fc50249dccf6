"""Small configs in the style of XTuner's configs."""

TEXT = """
import torch
from datasets import load_dataset
from mmengine.hooks import CheckpointHook
from mmengine.optim import AmpOptimWrapper, CosineAnnealingLR, LinearLR
from peft import LoraConfig
from torch.optim import AdamW
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from xtuner.dataset import process_hf_dataset
from xtuner.dataset.map_fns import openai_map_fn, template_map_fn_factory
from xtuner.engine.hooks import EvaluateChatHook
from xtuner.engine.runner import TrainLoop
from xtuner.model import SupervisedFinetune
from xtuner.utils import PROMPT_TEMPLATE, SYSTEM_TEMPLATE

model_path = "internlm/internlm2-chat-1_8b"
data_path = "rows.jsonl"
max_length = 1024
batch_size = 1
accumulative_counts = 16
max_epochs = 2
warmup_ratio = 0.03

tokenizer = dict(type=AutoTokenizer.from_pretrained, pretrained_model_name_or_path=model_path)
model = dict(
    type=SupervisedFinetune,
    llm=dict(
        type=AutoModelForCausalLM.from_pretrained,
        pretrained_model_name_or_path=model_path,
        trust_remote_code=True,
        torch_dtype=torch.float16,
        quantization_config=dict(type=BitsAndBytesConfig, load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    ),
    lora=dict(type=LoraConfig, r=64, lora_alpha=16, lora_dropout=0.1, bias="none"),
)
train_dataset = dict(
    type=process_hf_dataset,
    dataset=dict(type=load_dataset, path="json", data_files=dict(train=data_path)),
    tokenizer=tokenizer,
    max_length=max_length,
    dataset_map_fn=openai_map_fn,
    template_map_fn=dict(type=template_map_fn_factory, template=PROMPT_TEMPLATE.internlm2_chat),
    pack_to_max_length=True,
)
train_dataloader = dict(batch_size=batch_size, dataset=train_dataset)
optim_wrapper = dict(
    type=AmpOptimWrapper,
    optimizer=dict(type=AdamW, lr=2e-4, betas=(0.9, 0.999), weight_decay=0),
    clip_grad=dict(max_norm=1),
    accumulative_counts=accumulative_counts,
)
param_scheduler = [
    dict(type=LinearLR, start_factor=1e-5, by_epoch=True, begin=0, end=warmup_ratio * max_epochs),
    dict(type=CosineAnnealingLR, eta_min=0.0, by_epoch=True, begin=warmup_ratio * max_epochs, end=max_epochs),
]
train_cfg = dict(type=TrainLoop, max_epochs=max_epochs)
custom_hooks = [
    dict(type=EvaluateChatHook, tokenizer=tokenizer, every_n_iters=320, evaluation_inputs=["Who?"], system=""),
]
default_hooks = dict(checkpoint=dict(type=CheckpointHook, by_epoch=False, interval=160, max_keep_ckpts=3))
"""

IMAGE = (
    TEXT
    + """
from transformers import CLIPVisionModel
from xtuner.dataset import LLaVADataset
from xtuner.dataset.map_fns import llava_map_fn
from xtuner.model import LLaVAModel

model = dict(
    type=LLaVAModel,
    freeze_llm=True,
    freeze_visual_encoder=True,
    pretrained_pth="iter_2181.pth",
    llm=model["llm"],
    llm_lora=dict(type=LoraConfig, r=512, lora_alpha=256, lora_dropout=0.05),
    visual_encoder=dict(
        type=CLIPVisionModel.from_pretrained, pretrained_model_name_or_path="openai/clip-vit-large-patch14-336"
    ),
    visual_encoder_lora=dict(type=LoraConfig, r=64, lora_alpha=16, lora_dropout=0.05),
)
train_dataloader = dict(
    batch_size=4,
    dataset=dict(
        type=LLaVADataset,
        data_path="rows.json",
        image_folder="pictures",
        dataset_map_fn=llava_map_fn,
        template_map_fn=dict(type=template_map_fn_factory, template=PROMPT_TEMPLATE.internlm2_chat),
        max_length=int(2048 - (336 / 14) ** 2),
        pad_image_to_square=True,
    ),
)
"""
)

# For transformers' Trainer: parts are top-level names, and counts are optimizer steps.
TRAINER = """
import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, Trainer, TrainingArguments
from xtuner.dataset import process_hf_dataset
from xtuner.dataset.map_fns import oasst1_map_fn, template_map_fn_factory
from xtuner.utils import PROMPT_TEMPLATE

framework = "huggingface"
model_path = "internlm/internlm-7b"
trainer = Trainer
training_args = dict(
    type=TrainingArguments,
    do_train=True,
    learning_rate=1e-4,
    weight_decay=0.01,
    lr_scheduler_type="cosine",
    warmup_steps=60,
    per_device_train_batch_size=2,
    gradient_accumulation_steps=4,
    max_steps=600,
    adam_beta2=0.95,
    max_grad_norm=0.5,
    bf16=True,
    logging_steps=1,
    optim="adamw_torch",
    save_strategy="steps",
    save_steps=50,
    save_total_limit=3,
    seed=7,
)
tokenizer = dict(type=AutoTokenizer.from_pretrained, pretrained_model_name_or_path=model_path)
model = dict(
    type=AutoModelForCausalLM.from_pretrained,
    pretrained_model_name_or_path=model_path,
    trust_remote_code=True,
    torch_dtype=torch.float16,
    quantization_config=dict(type=BitsAndBytesConfig, load_in_4bit=True, bnb_4bit_quant_type="nf4"),
)
lora = dict(type=LoraConfig, r=64, lora_alpha=16, lora_dropout=0.1, bias="none", task_type="CAUSAL_LM")
train_dataset = dict(
    type=process_hf_dataset,
    dataset=dict(type=load_dataset, path="json", data_files="rows.jsonl"),
    tokenizer=tokenizer,
    max_length=1024,
    dataset_map_fn=oasst1_map_fn,
    template_map_fn=dict(type=template_map_fn_factory, template=PROMPT_TEMPLATE.internlm_chat),
    remove_unused_columns=True,
    shuffle_before_pack=True,
    pack_to_max_length=True,
)
"""

# Full fine-tuning, on folders for InternLM's own trainer.
INTERN_REPO = (
    TEXT
    + """
from xtuner.dataset.intern_repo import build_packed_dataset, load_intern_repo_untokenized_dataset

model = dict(type=SupervisedFinetune, use_varlen_attn=True, llm=dict(model["llm"], quantization_config=None))
train_dataloader.update(
    dataset=dict(
        type=build_packed_dataset,
        dataset_cfg=dict(
            type=load_intern_repo_untokenized_dataset,
            data_order_path=None,
            folder="sft",
            tokenizer=tokenizer,
            max_length=8192,
            template_map_fn=dict(type=template_map_fn_factory, template=PROMPT_TEMPLATE.internlm2_chat),
            file_type=".json",
        ),
        packed_length=8192,
        seed=1024,
    )
)
"""
)
