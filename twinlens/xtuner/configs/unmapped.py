"""Values of an XTuner config without a counterpart in a task: one line for each that changes the result of training."""

from fnmatch import fnmatchcase

from twinlens.xtuner.configs.tree import CHAT_HOOK, ConfigTree, describe

# Paths, and what to tell about them.
UNMAPPED = {
    f"{CHAT_HOOK}.evaluation_inputs": "XTuner samples answers to them; here evaluation.probes are asked and scored",
    f"{CHAT_HOOK}.evaluation_images": "XTuner samples answers about it; a probe names its own picture",
    f"{CHAT_HOOK}.system": "XTuner uses it for samples only, not in training; `system` here is for both",
    "val_dataloader*": "XTuner validates during training; here evaluation.probes are asked and scored",
    "visualizer*": "name trackers in run.trackers",
    "resume": "use `twinlens train --resume RUN` to resume a run",
    "load_from": "training starts from the model as it is",
    "work_dir": "give --work-dir",
    "training_args.output_dir": "give --work-dir",
    "training_args.deepspeed*": "give --deepspeed",
    "training_args.report_to": "name trackers in run.trackers",
    "training_args.resume_from_checkpoint": "use `twinlens train --resume RUN` to resume a run",
    "training_args.do_eval": "XTuner validates during training; here evaluation.probes are asked and scored",
}
# Paths that do not change the result of training.
IGNORED = (
    *(f"{CHAT_HOOK}.type", f"{CHAT_HOOK}.prompt_template*"),
    f"{CHAT_HOOK}.instruction",  # of XTuner 0.1: a piece of the template
    *("custom_hooks.*.tokenizer.*", "custom_hooks.*.image_processor.*", "custom_hooks.DatasetInfoHook.*"),
    *("custom_hooks.ThroughputHook.*", "custom_hooks.VarlenAttnArgsToMessageHubHook.*"),
    *("train_data*.tokenizer.*", "train_data*.image_processor.*", "train_data*.remove_unused_columns"),
    *("train_data*.shuffle_before_pack", "train_data*.use_varlen_attn", "train_data*.bot_name"),
    *("train_data*.dataset_cfg.file_type", "train_dataloader.dataset*.seed", "train_dataloader.num_workers"),
    *("train_dataloader.pin_memory", "train_dataloader.collate_fn.*", "train_dataloader.sampler.*"),
    *("train_dataloader.batch_sampler.*", "train_dataloader.persistent_workers", "val_*", "test_*"),
    *("model.use_varlen_attn", "model*.trust_remote_code", "model*.torch_dtype", "model*.attn_implementation"),
    *("model.llm*.type", "model*.quantization_config.type", "model*.quantization_config.llm_int8_*"),
    *("model*.quantization_config.bnb_4bit_*", "model.visual_encoder.type", "*lora.task_type"),
    *("optim_wrapper.type", "optim_wrapper.loss_scale", "optim_wrapper.clip_grad.error_if_nonfinite"),
    *("param_scheduler*.begin", "param_scheduler*.end", "param_scheduler*.by_epoch", "param_scheduler*.start_factor"),
    *("param_scheduler*.convert_to_iter_based", "param_scheduler*.T_max"),
    *("train_cfg.type", "train_cfg.by_epoch", "train_cfg.val_interval", "default_hooks.checkpoint.type"),
    *("default_hooks.timer.*", "default_hooks.logger.*", "default_hooks.param_scheduler.*"),
    *("default_hooks.sampler_seed.*", "randomness.deterministic", "env_cfg.*", "log_level", "log_processor.*"),
    *("training_args.eval*", "training_args.per_device_eval_batch_size", "training_args.type"),
    *("training_args.do_train", "training_args.bf16", "training_args.tf32", "training_args.log*"),
    *("training_args.run_name", "training_args.disable_tqdm", "training_args.overwrite_output_dir"),
    *("training_args.remove_unused_columns", "training_args.dataloader_num_workers", "training_args.ddp_*"),
    *("training_args.dataloader_pin_memory", "training_args.gradient_checkpointing_kwargs*"),
)


def unmapped_lines(tree: ConfigTree) -> list[str]:
    """A line for each value that the mapping did not read, except those that do not change the result of training."""
    lines: dict[str, None] = {}
    for path, value in tree.unused():
        pattern = next((pattern for pattern in (*UNMAPPED, *IGNORED) if fnmatchcase(path, pattern)), None)
        if pattern is None:
            lines[f"{path}: {describe(value)}; has no counterpart here"] = None
        elif pattern in UNMAPPED and value not in ("", False):
            lines[f"{pattern.rstrip('*')}: {UNMAPPED[pattern]}"] = None
    return list(lines)
