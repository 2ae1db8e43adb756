"""Flags of the reference implementation's scripts, and what takes their place in each verb.

Read only for the message about an unknown option. ``docs/from-the-reference.md`` has the same in tables.
"""

from __future__ import annotations

_NOT_NEEDED = "not needed here"
_IGNORED = "not needed here: the reference ignores it as well"

ANIMATE = {
    "--pretrained_model_name_or_path": "--model here",
    "--posenet_model_name_or_path": "--model here, the folder that holds the file",
    "--face_encoder_model_name_or_path": "--model here, the folder that holds the file",
    "--unet_model_name_or_path": "--model here, the folder that holds the file",
    "--validation_image": "REFERENCE here, the first argument",
    "--validation_control_folder": "MOTION here, the second argument",
    "--output_dir": "--output OUT.mp4 here",
    "--height": "--size WxH here",
    "--width": "--size WxH here",
    "--guidance_scale": "--guidance here",
    "--num_inference_steps": "--steps here",
    "--tile_size": "--window here",
    "--frames_overlap": "--overlap here",
    "--noise_aug_strength": "--noise-aug here",
    "--decode_chunk_size": "--decode-chunk here",
    "--gradient_checkpointing": f"{_NOT_NEEDED}: it is for training",
    "--revision": f"{_NOT_NEEDED}: --model names the files",
    "--validation_image_mask": f"{_NOT_NEEDED}: the face is detected",
    "--validation_control_mask_folder": f"{_NOT_NEEDED}: faces are detected",
    "--max_frame_num": _IGNORED,
    "--batch_frames": _IGNORED,
    "--face_embedding_extractor_weight_path": "--model here, whose face recogniser is used",
    "--num_optimization_iter": "--refine-iters here",
    "--start_refine_step": "--refine-steps A:B here, B not included",
    "--end_refine_step": "--refine-steps A:B here, B not included",
}  # fmt: skip

TRAIN = {
    "--pretrained_model_name_or_path": "--model here",
    "--pretrain_unet": "--model here",
    "--posenet_model_name_or_path": _IGNORED,
    "--face_encoder_model_name_or_path": _IGNORED,
    "--unet_model_name_or_path": _IGNORED,
    "--posenet_model_finetune_path": "--model here, the folder that holds the file",
    "--face_encoder_finetune_path": "--model here, the folder that holds the file",
    "--unet_model_finetune_path": "--model here, the folder that holds the file",
    "--finetune_mode": f"{_NOT_NEEDED}: training starts from --model, and --from-scratch names networks that do not",
    "--revision": f"{_NOT_NEEDED}: --model names the files",
    "--non_ema_revision": f"{_NOT_NEEDED}: --model names the files",
    "--data_root_path": "DATASET here, the first argument",
    "--data_path": "DATASET here, the first argument",
    "--rec_data_path": "DATASET here, the first argument",
    "--vec_data_path": "DATASET here, the first argument",
    "--csv_path": _IGNORED,
    "--video_folder": _IGNORED,
    "--condition_folder": _IGNORED,
    "--motion_folder": _IGNORED,
    "--dataset_type": _IGNORED,
    "--dataset_width": "--sizes WxH here",
    "--dataset_height": "--sizes WxH here",
    "--output_dir": "--output RUN here",
    "--num_frames": _IGNORED,
    "--sample_n_frames": "--frames here",
    "--ref_augment": _IGNORED,
    "--train_stage": _IGNORED,
    "--per_gpu_batch_size": "--batch here, the samples per step of all GPUs together",
    "--gradient_accumulation_steps": "--micro-batch here, the samples computed at once",
    "--num_train_epochs": "--epochs here",
    "--max_train_steps": "--steps here",
    "--learning_rate": "--lr here",
    "--scale_lr": f"{_NOT_NEEDED}: --lr is used as given",
    "--lr_scheduler": "--schedule here",
    "--lr_warmup_steps": "--warmup here",
    "--conditioning_dropout_prob": "loss.dropout_prob of a --config file here",
    "--use_8bit_adam": "no counterpart here; --train lora needs less memory",
    "--allow_tf32": "no counterpart here; --dtype sets the floating-point type",
    "--use_ema": "--ema DECAY here",
    "--num_workers": "--workers here",
    "--adam_beta1": "optimizer.beta1 of a --config file here",
    "--adam_beta2": "optimizer.beta2 of a --config file here",
    "--adam_weight_decay": "optimizer.weight_decay of a --config file here",
    "--adam_epsilon": "optimizer.epsilon of a --config file here",
    "--max_grad_norm": "--clip-norm here",
    "--push_to_hub": "no counterpart here: nothing is uploaded",
    "--hub_token": "no counterpart here: nothing is uploaded",
    "--hub_model_id": "no counterpart here: nothing is uploaded",
    "--logging_dir": "--track here, into the run's folder",
    "--report_to": "--track here",
    "--mixed_precision": "--dtype here",
    "--local_rank": f"{_NOT_NEEDED}: torchrun sets it",
    "--rank": _IGNORED,
    "--checkpointing_steps": "--save-every here",
    "--checkpoints_total_limit": "--keep here",
    "--resume_from_checkpoint": "--resume RUN here",
    "--gradient_checkpointing": "--checkpointing here",
    "--enable_xformers_memory_efficient_attention": f"{_NOT_NEEDED}: PyTorch's own attention is used",
    "--log_trainable_parameters": "--plan here",
    "--validation_steps": "--validate-every here",
    "--num_validation_images": "--validate-clips here",
    "--validation_prompt": _IGNORED,
    "--validation_image_folder": "--validate DATASET here",
    "--validation_image": "--validate DATASET here",
    "--validation_control_folder": "--validate DATASET here",
}  # fmt: skip

PREPROCESS = {
    "--target_image_folder_path": "INPUT here, the first argument",
    "--image_folder": f"{_NOT_NEEDED}: give the video as INPUT; faces are detected and stored with the clip",
    "--ref_image_path": "--reference here, with --align upstream",
    "--poses_folder_path": "--poses OUT.mp4 here, or --layout upstream for folders of images",
    "--root_path": "INPUT here, the first argument",
    "--name": "INPUT here, the first argument",
    "--start": f"{_NOT_NEEDED}: every video of INPUT is read, and finished ones are skipped",
    "--end": f"{_NOT_NEEDED}: every video of INPUT is read, and finished ones are skipped",
}  # fmt: skip

VERBS = {"animate": ANIMATE, "train": TRAIN, "preprocess": PREPROCESS}


def counterpart(verb: str, flag: str) -> str | None:
    """Replacement of a reference flag in ``verb``, as a clause; None for a flag that is not known."""
    found = VERBS.get(verb, {}).get(flag)
    if found is not None:
        return found
    other = next((name for name, flags in VERBS.items() if flag in flags), None)
    return None if other is None or verb not in VERBS else f"an option of `sa {other}`: {VERBS[other][flag]}"
