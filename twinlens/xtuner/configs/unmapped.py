"""XTuner settings that no task setting can express: one line for each."""

from fnmatch import fnmatchcase

from twinlens.xtuner.configs.tree import CHAT_HOOK, ConfigTree, describe

# Sentences for the user, with the path patterns that they explain.
EXPLANATIONS = {
    "XTuner samples answers to them; twinlens asks and scores evaluation.probes": f"{CHAT_HOOK}.evaluation_inputs",
    "XTuner samples answers about it; a probe names its own picture": f"{CHAT_HOOK}.evaluation_images",
    "XTuner uses it only for samples, not in training; a task uses `system` for both": f"{CHAT_HOOK}.system",
    "XTuner validates during training; twinlens asks and scores evaluation.probes": "val_dataloader* "
    "training_args.do_eval",
    "name trackers in run.trackers": "visualizer* training_args.report_to",
    "use `twinlens train --resume RUN` to resume a run": "resume training_args.resume_from_checkpoint",
    "training starts from the unchanged model": "load_from",
    "give --work-dir": "work_dir training_args.output_dir",
    "give --deepspeed": "training_args.deepspeed*",
}
EXPLAINED = {pattern: sentence for sentence, patterns in EXPLANATIONS.items() for pattern in patterns.split()}
# Patterns of settings that do not change the result of training, by the path in front of them.
IGNORED = {
    CHAT_HOOK: "type prompt_template* instruction",  # instruction: of XTuner 0.1, a part of the template
    "custom_hooks.*": "tokenizer.* image_processor.*",
    "custom_hooks": "DatasetInfoHook.* ThroughputHook.* VarlenAttnArgsToMessageHubHook.*",
    "train_data*": "tokenizer.* image_processor.* remove_unused_columns shuffle_before_pack use_varlen_attn bot_name",
    "train_data*.dataset_cfg": "file_type",
    "train_dataloader.dataset*": "seed",
    "train_dataloader": "num_workers pin_memory collate_fn.* sampler.* batch_sampler.* persistent_workers",
    "model": "use_varlen_attn llm*.type visual_encoder.type",
    "model*": "trust_remote_code torch_dtype attn_implementation",
    "model*.quantization_config": "type llm_int8_* bnb_4bit_*",
    "*lora": "task_type",
    "optim_wrapper": "type loss_scale clip_grad.error_if_nonfinite",
    "param_scheduler*": "begin end by_epoch start_factor convert_to_iter_based T_max",
    "train_cfg": "type by_epoch val_interval",
    "default_hooks": "checkpoint.type timer.* logger.* param_scheduler.* sampler_seed.*",
    "randomness": "deterministic",
    "training_args": "type do_train bf16 tf32 log* eval* run_name disable_tqdm overwrite_output_dir ddp_* "
    "per_device_eval_batch_size remove_unused_columns dataloader_num_workers dataloader_pin_memory "
    "gradient_checkpointing_kwargs*",
}
PATTERNS = (*EXPLAINED, *(f"{path}.{name}" for path, names in IGNORED.items() for name in names.split()))


def unmapped_lines(tree: ConfigTree) -> list[str]:
    """A line for each value that the mapping did not read and that changes the result of training."""
    lines: dict[str, None] = {}
    for path, value in tree.unused():
        pattern = next((pattern for pattern in PATTERNS if fnmatchcase(path, pattern)), None)
        if pattern is None:
            lines[f"{path}: {describe(value)}; has no counterpart in a task"] = None
        elif pattern in EXPLAINED and value not in ("", False):
            lines[f"{pattern.rstrip('*')}: {EXPLAINED[pattern]}"] = None
    return list(lines)
