"""What of an XTuner config has no counterpart: a line for each thing, unless it changes nothing of what is learned."""

from fnmatch import fnmatchcase

from twinlens.xtuner.configs.tree import HOOK, ConfigTree, shown

# What stays without a counterpart, and why; a path without a sentence changes nothing of what is learned.
REST: dict[str, str | None] = {
    f"{HOOK}.evaluation_inputs": "XTuner samples answers to them; here evaluation.probes are asked and scored",
    f"{HOOK}.evaluation_images": "XTuner samples answers on it; a probe of evaluation.probes names its own picture",
    f"{HOOK}.system": "XTuner gives it to its samples alone, not in training; `system` here is for both",
    f"{HOOK}.type": None,
    f"{HOOK}.prompt_template*": None,
    f"{HOOK}.instruction": None,  # of XTuner 0.1: a piece of the template
    "custom_hooks.*.tokenizer.*": None,
    "custom_hooks.*.image_processor.*": None,
    "custom_hooks.DatasetInfoHook.*": None,
    "custom_hooks.ThroughputHook.*": None,
    "custom_hooks.VarlenAttnArgsToMessageHubHook.*": None,
    "train_data*.tokenizer.*": None,
    "train_data*.image_processor.*": None,
    "val_dataloader*": "scored while training there; here evaluation.probes are asked and scored",
    "val_*": None,
    "test_*": None,
    "train_data*.remove_unused_columns": None,
    "train_data*.shuffle_before_pack": None,
    "train_data*.use_varlen_attn": None,
    "train_data*.bot_name": None,
    "train_data*.dataset_cfg.file_type": None,
    "train_dataloader.dataset*.seed": None,
    "train_dataloader.num_workers": None,
    "train_dataloader.pin_memory": None,
    "train_dataloader.collate_fn.*": None,
    "train_dataloader.sampler.*": None,
    "train_dataloader.batch_sampler.*": None,
    "train_dataloader.persistent_workers": None,
    "model.use_varlen_attn": None,
    "model*.trust_remote_code": None,
    "model*.torch_dtype": None,
    "model*.attn_implementation": None,
    "model.llm*.type": None,
    "model*.quantization_config.type": None,
    "model*.quantization_config.llm_int8_*": None,
    "model*.quantization_config.bnb_4bit_*": None,
    "model.visual_encoder.type": None,
    "*lora.task_type": None,
    "optim_wrapper.type": None,
    "optim_wrapper.loss_scale": None,
    "optim_wrapper.clip_grad.error_if_nonfinite": None,
    "param_scheduler*.begin": None,
    "param_scheduler*.end": None,
    "param_scheduler*.by_epoch": None,
    "param_scheduler*.start_factor": None,
    "param_scheduler*.convert_to_iter_based": None,
    "param_scheduler*.T_max": None,
    "train_cfg.type": None,
    "train_cfg.by_epoch": None,
    "train_cfg.val_interval": None,
    "default_hooks.checkpoint.type": None,
    "default_hooks.timer.*": None,
    "default_hooks.logger.*": None,
    "default_hooks.param_scheduler.*": None,
    "default_hooks.sampler_seed.*": None,
    "randomness.deterministic": None,
    "env_cfg.*": None,
    "log_level": None,
    "log_processor.*": None,
    "visualizer*": "name trackers in run.trackers",
    "resume": "`twinlens train --resume RUN` goes on with a run",
    "load_from": "training starts from the model as it is",
    "work_dir": "give --work-dir",
    "training_args.output_dir": "give --work-dir",
    "training_args.deepspeed*": "give --deepspeed",
    "training_args.report_to": "name trackers in run.trackers",
    "training_args.resume_from_checkpoint": "`twinlens train --resume RUN` goes on with a run",
    "training_args.do_eval": "scored while training there; here evaluation.probes are asked and scored",
    "training_args.eval*": None,
    "training_args.per_device_eval_batch_size": None,
    "training_args.type": None,
    "training_args.do_train": None,
    "training_args.bf16": None,
    "training_args.tf32": None,
    "training_args.log*": None,
    "training_args.run_name": None,
    "training_args.disable_tqdm": None,
    "training_args.overwrite_output_dir": None,
    "training_args.remove_unused_columns": None,
    "training_args.dataloader_num_workers": None,
    "training_args.dataloader_pin_memory": None,
    "training_args.ddp_*": None,
    "training_args.gradient_checkpointing_kwargs*": None,
}


def rest(tree: ConfigTree) -> list[str]:
    """A line for what nobody asked for, unless it changes nothing."""
    lines: dict[str, None] = {}
    for path, value in tree.left():
        pattern = next((pattern for pattern in REST if fnmatchcase(path, pattern)), None)
        if pattern is None:
            lines[f"{path}: {shown(value)}; has no counterpart here"] = None
        elif (sentence := REST[pattern]) is not None and value not in ("", False):
            lines[f"{pattern.rstrip('*')}: {sentence}"] = None
    return list(lines)
