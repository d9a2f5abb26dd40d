"""Fields of config.json that this project knows and does not need: they have no effect here."""

from __future__ import annotations

# Training only, bookkeeping, or concerning outputs that an inference engine does not return.
WITHOUT_EFFECT = frozenset(
    """
    architectures auto_map transformers_version torchscript use_bfloat16 _name_or_path name_or_path _commit_hash
    _attn_implementation attn_implementation _attn_implementation_autoset _flash_attn_2_enabled _from_model_config
    attention_dropout hidden_dropout aux_loss_alpha seq_aux router_aux_loss_coef output_router_logits
    gradient_checkpointing use_cache pretraining_tp ep_size is_decoder chunk_size_feed_forward tie_encoder_decoder
    output_attentions output_hidden_states output_scores return_dict return_dict_in_generate tf_legacy_loss
    finetuning_task problem_type num_labels id2label label2id task_specific_params prefix tokenizer_class
    pad_token_id sep_token_id decoder_start_token_id cross_attention_hidden_size max_tokenizer_truncation
    max_window_layers alibi_bias_max attn_impl init_device scale_attention_softmax_in_fp32 attention_softmax_in_fp32
    reorder_and_upcast_attn slow_but_exact embedding_fraction moe_token_dropout router_z_loss_coef
    layerdrop resid_pdrop embd_pdrop attn_pdrop
    """.split()
)
