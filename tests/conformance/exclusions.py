"""Which of the library's shared tests are not run on our classes, and why."""

__all__ = ["EXCLUSIONS"]

# Regular expression over `Case.test_name` -> the reason.
EXCLUSIONS: dict[str, str] = {
    r".*\.test_(correct_missing_keys|model_weights_reload_no_missing_tied_weights)": (
        "loads checkpoints that lack weights; ours are refused by name (tests/modeling/test_loading.py)"
    ),
    r".*\.test_model_outputs_equivalence": "subtracts outputs from one another, and modality_mask is bool",
    r".*\.test_training.*": (
        "expects a loss of the base model, which has none, and a gradient of the unimodal projections, which belong "
        "to contrastive learning (tests/modeling/test_encoders.py, test_common.py)"
    ),
    r".*\.test_get_(audio|image|video|text)_features_attentions": (
        "features come with states and hidden states; attentions are those of `model.tower(...).encoder`"
    ),
    r"(TextOnly|VisionOnly)Test\.test_get_audio_features.*": "the case has no audio",
    r"(AudioOnly|VisionOnly|WaveformAndViT)Test\.test_get_text_features.*": "the case has no text",
    r"(AudioOnly|VisionOnly|WaveformAndViT|AudioTower)Test\.test_eager_matches_sdpa_inference_(?!.*no_attn_mask).*": (
        "passes an attention_mask of its own, which is text's here, and a model without text refuses it by name"
    ),
    r"(AudioOnly|VisionOnly|WaveformAndViT|Vectors)Test\.test_model_get_set_embeddings": "there is no token embedding",
    r"VectorsTest\.test_get_(text|audio)_features.*": (
        "passes token ids or nothing; and what is given as vectors has no encoder with states of its own"
    ),
    r"VectorsTest\.test_eager_matches_sdpa_inference_(?!.*no_attn_mask).*": (
        "passes an attention_mask of another length than that of the text's vectors, which is refused by name"
    ),
    r"AudioTowerTest\.test_model_get_set_embeddings": (
        "frames enter by a convolution, which is what gradient checkpointing asks for (tests/modeling/test_common.py)"
    ),
    r"ImageProcessorTest\.test_call_(numpy|numpy_4_channels|pil|pytorch)": (
        "a list of pictures is the frames of one clip, as in video processors; a batch of stills is a list of lists"
    ),
    r"ImageProcessorTest\.test_image_processor_from_dict_with_kwargs_has_attributes": (
        "passes do_convert_rgb, which is no option here: what is not RGB is always made so"
    ),
    r"ImageProcessorTest\.test_new_models_require_torchvision_backend": (
        "pictures are processed by Pillow and NumPy; torchvision is not among the project's packages"
    ),
    r"ImageProcessorTest\.test_valid_kwargs_set": (
        "looks for the fields beside the class; ours stand in pictures_triemo, which ONNX reads without torch"
    ),
    r"ProcessorTest\.test_call_arguments_(default_none|not_in_processor_kwargs)": (
        "a rule of the library's own repository: what is no setting of a part (use_sound_track, limits) is an argument"
    ),
    r"ProcessorTest\.test_(flat_kwarg_applied_when_modality_dict_lacks_it|model_input_names)": (
        "gives one sample both a still and a clip, and passes do_sample_frames; both are refused by name"
    ),
}
