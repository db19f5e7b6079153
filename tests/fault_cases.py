"""The numbered fault cases: what must happen, and the tests that would fail if it did not.

Keys are the numbers of the cases. A value is one sentence and the tests of the case, as pytest
names them. ``test_fault_cases.py`` checks that every number has a test and that each test exists.
"""

GPU_CASES = (93,)
"""Cases whose last word needs a GPU; their tests are marked ``gpu`` and skipped, with a reason, elsewhere."""

D, T, B, M, R, E = (
    f"tests/{n}" for n in ("data", "training", "backbones", "metrics", "runs", "evaluation")
)
CORE = "tests/core"

CASES = {
    # files and what is read from them
    1: (
        "A table of label names that was stored as a pickled dictionary is read without running it.",
        f"{D}/test_mapping.py::test_every_protocol_reads_the_same",
        f"{D}/test_mapping.py::test_file_of_numpy_itself_and_numpy_integers",
        f"{D}/test_mapping.py::test_wrong_content_is_refused",
        f"{D}/test_mapping.py::test_wrong_files_are_refused",
    ),
    2: (
        "A table of label names that would run a command is refused and runs nothing.",
        f"{D}/test_mapping.py::test_malicious_file_is_refused_by_name_without_effect",
        f"{D}/test_things_eeg.py::test_code_is_never_run",
    ),
    3: (
        "Mutated tables of label names are refused or read, and never crash.",
        f"{D}/test_mapping.py::test_ten_thousand_mutations",
        f"{D}/test_mapping.py::test_a_hundred_thousand_mutations",
        f"{D}/test_mapping.py::test_deeply_nested_pickle_does_not_crash",
    ),
    4: (
        "Labels without a name and names without a vertex are refused and listed.",
        f"{D}/test_algonauts.py::test_damage_is_refused",
        f"{D}/test_nsd.py::test_labels_without_a_name_are_refused",
    ),
    5: (
        "An array file whose header promises terabytes is refused before memory is taken.",
        f"{CORE}/test_files_config_registry.py::test_an_array_file_is_checked_before_memory_is_taken",
        f"{D}/test_algonauts.py::test_truncated_and_inflated_files_are_refused",
    ),
    6: (
        "A truncated array file is refused.",
        f"{CORE}/test_files_config_registry.py::test_an_array_file_is_checked_before_memory_is_taken",
        f"{D}/test_algonauts.py::test_truncated_and_inflated_files_are_refused",
        f"{B}/test_store.py::test_a_truncated_file_is_refused",
    ),
    7: (
        "One flipped bit in any stored file is found by its checksum.",
        "tests/test_bit_flips.py::test_two_hundred_random_flips_are_all_seen",
        "tests/test_bit_flips.py::test_ten_thousand_random_flips_are_all_seen",
        "tests/test_bit_flips.py::test_flips_in_the_tensors_of_torch_files_are_all_seen",
        "tests/test_bit_flips.py::test_flips_in_a_fetched_archive_are_all_seen",
        f"{D}/test_algonauts.py::test_a_flipped_bit_in_a_written_folder_is_refused",
    ),
    8: (
        "An archive that would unpack to far more than its size is refused from its directory.",
        f"{D}/test_fetch.py::test_zip_bomb_is_refused_from_its_directory",
    ),
    9: (
        "Responses of another type or order are converted with a notice; objects and transposed ones are refused.",
        f"{D}/test_algonauts.py::test_float64_and_fortran_are_converted_with_a_notice",
        f"{D}/test_algonauts.py::test_damage_is_refused",
        "tests/remedies/test_data_algonauts.py::test_vertices_by_images",
    ),
    10: (
        "Weights with anything but tensors inside are refused with advice and never unpickled.",
        f"{B}/test_dinov2.py::test_settings_beside_the_tensors_are_refused_with_advice",
        f"{B}/test_dinov2.py::test_files_that_hold_more_than_tensors_are_refused_and_run_nothing",
    ),
    11: (
        "Unsound headers of tensor files are refused: too large, overlapping, with holes, repeated names.",
        f"{T}/test_checkpoint.py::test_unsound_headers_are_refused",
        f"{T}/test_checkpoint.py::test_a_header_above_one_megabyte_is_refused",
        f"{T}/test_checkpoint.py::test_random_headers_never_raise_anything_else",
        f"{B}/test_safetensors.py::test_malformed_safetensors_are_refused_from_the_header",
    ),
    12: (
        "Missing, surplus and misspelt weights are refused and listed on both sides.",
        f"{B}/test_dinov2.py::test_missing_extra_and_misshaped_keys_are_all_listed",
        f"{T}/test_other_shapes.py::test_an_encoder",
        f"{T}/test_other_shapes.py::test_a_fusion",
    ),
    13: (
        "A checkpoint of another model, subject or number of vertices is refused from its manifest.",
        f"{T}/test_encoder.py::test_an_encoder_of_something_else_is_refused_before_its_tensors_are_read",
        f"{T}/test_checkpoint.py::test_a_bundle_of_something_else_is_refused_before_its_tensors_are_read",
        f"{T}/test_loop.py::test_a_foreign_run_is_refused_before_its_tensors_are_read",
    ),
    14: (
        "A newer layout is refused with both versions; every released one is still read.",
        f"{T}/test_checkpoint.py::test_another_schema_is_refused",
        f"{T}/test_loop.py::test_a_checkpoint_of_every_released_schema_is_resumed",
        f"{T}/test_train_fusion.py::test_models_of_every_released_schema_are_read_and_answer_as_they_did",
        f"{CORE}/test_records_runtime.py::test_a_record_of_a_newer_schema_asks_for_a_newer_package",
    ),
    15: (
        "A file that is exchanged between its description and its reading is refused.",
        f"{T}/test_checkpoint.py::test_tensors_exchanged_between_manifest_and_read_are_refused",
        f"{B}/test_store.py::test_an_image_replaced_while_tokens_are_made_is_refused_and_nothing_is_kept",
        f"{B}/test_store.py::test_a_file_exchanged_after_it_was_checked_is_checked_again",
    ),
    16: (
        "A symbolic link that leads out of the user's folder is refused unless allowed, by every reader.",
        f"{D}/test_links.py::test_a_link_out_of_the_folder_is_refused_and_read_where_it_is_allowed",
        f"{D}/test_nsd.py::test_links_out_of_the_root_need_leave",
        f"{D}/test_imagenet_study.py::test_links_out_of_the_root_need_leave",
        f"{D}/test_kamitani.py::test_links_out_of_the_folder_need_leave",
        f"{D}/test_kamitani.py::test_a_linked_image_needs_leave",
        f"{D}/test_algonauts.py::test_links_out_of_the_folder_need_leave",
        f"{B}/test_dinov2.py::test_sharded_folders_are_read_and_cannot_point_outside",
    ),
    17: (
        "Archives whose members leave the folder, are links or devices, or are too large, are refused.",
        f"{D}/test_fetch.py::test_names_that_leave_the_archive_are_refused",
        f"{D}/test_fetch.py::test_tar_links_and_devices_are_refused",
        f"{D}/test_fetch.py::test_zip_links_are_refused",
        f"{D}/test_fetch.py::test_zip_bomb_is_refused_from_its_directory",
    ),
    18: (
        "Archives with two members of one name, whatever its case or Unicode form, are refused.",
        f"{D}/test_fetch.py::test_ambiguous_names_are_refused",
    ),
    19: (
        "An HDF5 or MATLAB file of another layout is refused with the place inside the file.",
        f"{D}/test_nsd.py::test_damage_is_refused_with_the_place_inside_the_file",
        f"{D}/test_kamitani.py::test_damaged_files_are_refused",
    ),
    # images
    20: (
        "An image of more than 50 million pixels is refused from its header.",
        f"{D}/test_images.py::test_a_bomb_is_refused_from_its_header",
    ),
    21: (
        "A small file that unpacks to 88 million pixels is refused.",
        f"{D}/test_images.py::test_a_real_small_file_of_many_pixels_is_refused",
    ),
    22: (
        "Truncated images are refused, or left out, counted and listed where that was asked for.",
        f"{D}/test_images.py::test_truncated_files_are_refused_by_name",
        f"{D}/test_folder.py::test_unreadable_images_are_refused_or_counted",
    ),
    23: (
        "Empty files, web pages under the name of an image and unknown formats are refused.",
        f"{D}/test_images.py::test_what_is_no_image_is_refused",
        f"{D}/test_folder.py::test_unreadable_images_are_refused_or_counted",
    ),
    24: (
        "Grey, palette, CMYK and 1-bit images become RGB; transparency becomes white.",
        f"{D}/test_images.py::test_other_modes_become_rgb",
        f"{D}/test_images.py::test_a_cmyk_jpeg_keeps_its_colours",
        f"{D}/test_images.py::test_alpha_is_laid_on_white",
        f"{D}/test_images.py::test_grey_with_alpha_and_transparent_palette_are_laid_on_white",
    ),
    25: (
        "Grey of 10, 12 or 16 bits is scaled to 8; numbers without a known white are refused.",
        f"{D}/test_images.py::test_sixteen_bit_grey_is_scaled_not_cut",
        f"{D}/test_deep_grey.py::test_black_is_black_white_is_white_and_the_rest_lies_between",
        f"{D}/test_deep_grey.py::test_numbers_without_a_known_white_are_refused",
    ),
    26: (
        "The orientation noted by a camera is ignored.",
        f"{D}/test_images.py::test_exif_orientation_is_ignored",
    ),
    27: (
        "Of several frames the first is taken and the file is counted; an image with a text bomb is refused.",
        f"{D}/test_images.py::test_of_many_frames_the_first_is_taken",
        f"{D}/test_folder.py::test_files_of_several_frames_are_counted",
        f"{D}/test_images.py::test_a_text_bomb_is_refused",
    ),
    28: (
        "Images smaller than the crop and thin strips are resized by one rule.",
        f"{B}/test_preprocess.py::test_small_images_and_strips_give_the_same_shape",
        f"{B}/test_preprocess.py::test_a_strip_costs_no_more_than_twenty_squares",
    ),
    29: (
        "File names without leading zeros are paired by their number.",
        f"{D}/test_algonauts.py::test_unpadded_names_pair_by_number_not_by_order",
        f"{D}/test_ood_sets.py::test_v2_folders_are_numbers_in_numeric_order",
    ),
    30: (
        "The same image in two sets is refused; copies within a set or between a subject's splits are counted.",
        f"{D}/test_copies.py::test_a_copy_in_another_set_is_refused_with_count_and_names",
        f"{D}/test_copies.py::test_copies_inside_a_set_are_counted_aloud",
        f"{D}/test_copies.py::test_images_that_a_subject_saw_in_two_splits_are_counted_in_the_record",
        f"{D}/test_folder.py::test_copies_stay_together_when_splitting",
        f"{D}/test_readers.py::test_images_that_the_subject_saw_are_refused",
    ),
    31: (
        "An unreadable image stops the work within ten seconds and is named; a killed worker is noticed.",
        f"{B}/test_store.py::test_a_broken_file_far_ahead_stops_the_work_within_seconds",
        f"{B}/test_store.py::test_an_unreadable_image_is_named_and_leaves_no_set",
        f"{R}/test_runs_execute.py::test_no_kernel_is_left_after_ten_seconds_whoever_dies",
        "tests/training/test_image_batches.py::test_a_killed_worker_is_noticed_at_once_and_named",
    ),
    # responses and numbers
    32: (
        "NaN and infinite responses are refused with counts per hemisphere, or dropped and recorded.",
        f"{D}/test_algonauts.py::test_damage_is_refused",
        f"{D}/test_algonauts.py::test_vertices_with_nan_are_dropped_and_recorded",
        f"{D}/test_nsd.py::test_vertices_with_nan_in_any_session_are_refused_or_dropped_from_everything",
        f"{T}/test_encoder.py::test_missing_responses_are_masked_counted_or_refused",
    ),
    33: (
        "The correlation of a constant vertex is undefined, left out of means and counted.",
        f"{M}/test_correlation.py::test_undefined_is_nan_never_zero",
        f"{T}/test_encoder.py::test_constant_vertex_is_undefined_not_zero",
        f"{E}/test_encoding.py::test_undefined_vertices_are_counted_and_left_out",
    ),
    34: (
        "Vertices that hardly vary are flagged; the correlation loss keeps a bounded gradient.",
        f"{M}/test_correlation.py::test_near_constant_is_flagged_and_computed",
        f"{E}/test_encoding.py::test_vertices_that_hardly_vary_are_flagged_and_still_scored",
        "tests/losses/test_pcc.py::test_nearly_constant_input_has_a_bounded_gradient",
        "tests/losses/test_pcc.py::test_constant_input_has_a_finite_small_gradient",
    ),
    35: (
        "A correlation of fewer than three values is refused.",
        "tests/remedies/test_metrics.py::test_responses_that_cannot_be_correlated",
        "tests/losses/test_pcc.py::test_a_correlation_needs_three_values",
        f"{E}/test_encoding.py::test_too_few_stimuli_are_refused",
    ),
    36: (
        "Correlations of responses with a mean of 10,000 are as precise as in double precision.",
        f"{M}/test_correlation.py::test_equals_double_precision_at_large_means",
    ),
    37: (
        "Half precision accumulates in single precision, and what does not fit into float16 is refused.",
        f"{M}/test_correlation.py::test_half_precision_accumulates_in_single",
        "tests/losses/test_pcc.py::test_inside_autocast_it_stays_in_float32",
        f"{B}/test_store.py::test_numbers_that_do_not_fit_are_refused",
    ),
    38: (
        "Different numbers of images and responses are refused with both counts.",
        f"{D}/test_counts_agree.py::test_other_numbers_of_images_and_responses_are_refused",
        f"{D}/test_algonauts.py::test_damage_is_refused",
    ),
    39: (
        "The published numbers of vertices are enforced, and swapped hemispheres are refused.",
        f"{D}/test_algonauts_sizes.py::test_published_counts_are_enforced",
        f"{D}/test_algonauts_sizes.py::test_true_vertices_with_too_few_images_are_refused_and_fit_their_masks",
        "tests/remedies/test_data_algonauts.py::test_left_and_right_swapped",
    ),
    40: (
        "Masks of another length are refused; a region that a subject lacks is absent and not zero.",
        f"{D}/test_study_types.py::test_masks_and_hemispheres_must_fit",
        f"{D}/test_study_types.py::test_a_region_that_is_unknown_or_absent_is_refused",
        f"{E}/test_encoding.py::test_overlapping_regions_count_a_vertex_in_each_and_once_in_all_and_absent_ones_have_no_row",
    ),
    41: (
        "A vertex of two regions counts in each of them and once in all.",
        f"{D}/test_study_types.py::test_overlapping_rois_count_a_vertex_once_and_parcels_partition",
        f"{E}/test_encoding.py::test_overlapping_regions_count_a_vertex_in_each_and_once_in_all_and_absent_ones_have_no_row",
    ),
    42: (
        "Repeats of a stimulus stay in one split, and a stimulus in two splits is refused.",
        f"{D}/test_splits.py::test_split_keeps_repeats_together_and_ignores_order",
        f"{D}/test_splits.py::test_leaks_are_refused_with_counts_and_examples",
    ),
    43: (
        "Without a positive noise ceiling a normalised score is undefined; ceilings above 1 are refused.",
        f"{M}/test_noise.py::test_undefined_ceilings_are_counted_not_scored",
        f"{M}/test_infinite_values.py::test_a_ceiling_above_one_is_refused",
        f"{D}/test_algonauts.py::test_undefined_ceilings_become_nan_and_are_counted",
    ),
    44: (
        "A penalty at the end of its grid for many vertices is told with their share.",
        "tests/models/test_ridge.py::test_edge_of_the_grid_is_reported",
    ),
    45: (
        "Collinear and constant features, and more features than stimuli, are solved.",
        "tests/models/test_ridge.py::test_collinear_and_constant_features",
        "tests/models/test_ridge.py::test_more_features_than_stimuli_that_are_collinear_or_never_change",
    ),
    46: (
        "A NaN loss or gradient stops the training and names step, rows and tensor.",
        f"{T}/test_loop.py::test_a_nan_loss_names_the_tensor_the_step_and_the_rows",
        f"{T}/test_loop.py::test_a_nan_gradient_names_the_parameter_and_keeps_the_last_good_checkpoint",
    ),
    47: (
        "Shapes are never broadcast in a loss.",
        "tests/losses/test_pcc.py::test_shapes_are_never_broadcast",
        f"{T}/test_encoder.py::test_loss_leaves_missing_out_and_never_broadcasts",
    ),
    48: (
        "Zero tokens come back as exact zeros; number types that need a scale are not offered.",
        f"{B}/test_silent_tokens.py::test_zero_tokens_are_stored_as_zeros",
        f"{B}/test_silent_tokens.py::test_types_that_would_need_a_scale_are_refused",
    ),
    49: (
        "Stored tokens of other weights, blocks, sizes or types are never taken for the wanted ones.",
        f"{B}/test_store.py::test_whatever_determines_the_tokens_changes_the_key",
        f"{B}/test_store.py::test_another_manifest_is_refused",
        f"{T}/test_encoder.py::test_other_tokens_are_refused",
    ),
    50: (
        "Two processes on one store do the work once, and half a set is never read.",
        f"{B}/test_store_processes.py::test_two_processes_on_one_store_do_the_work_once",
        f"{B}/test_store_processes.py::test_a_killed_extraction_goes_on_where_it_was_and_ends_the_same",
        f"{B}/test_store_processes.py::test_threads_of_one_process_do_the_work_once",
    ),
    # labels and evaluation
    51: (
        "The classes of ImageNet-R and -A are never taken for each other or scored unmasked.",
        f"{D}/test_ood_sets.py::test_r_and_a",
        f"{D}/test_ood_sets.py::test_masked_logits_follow_wnids_whatever_the_order_of_the_head",
        f"{E}/test_evaluate_ood.py::test_a_head_for_the_classes_of_another_set_is_refused",
    ),
    52: (
        "Missing, surplus and renamed class folders are refused; parts only when declared, with their number.",
        f"{D}/test_ood_sets.py::test_missing_extra_and_renamed_folders",
        f"{D}/test_ood_sets.py::test_a_partial_set_says_how_many_of_its_published_classes_it_has",
        f"{D}/test_folder.py::test_fewer_classes_only_when_declared",
    ),
    53: (
        "Labels outside the head, negative or fractional labels are refused.",
        f"{M}/test_classification.py::test_labels_outside_the_head_refused",
        "tests/remedies/test_metrics.py::test_labels_that_do_not_fit_logits",
        f"{E}/test_evaluate_ood.py::test_an_unlabelled_image_is_refused",
    ),
    54: (
        "Classes are matched by name and checked by their sums, never by position.",
        f"{D}/test_ood_sets.py::test_r_and_a",
        f"{D}/test_ood_sets.py::test_masked_logits_follow_wnids_whatever_the_order_of_the_head",
        f"{E}/test_suite.py::test_a_set_with_fewer_classes_in_another_order_is_scored_by_name",
    ),
    55: (
        "Empty sets, one image and one class give undefined or plain values, and records without NaN.",
        f"{M}/test_classification.py::test_empty_one_image_one_class",
        f"{E}/test_evaluate_ood.py::test_an_empty_set_is_undefined",
        f"{E}/test_evaluate_ood.py::test_one_image_and_one_class_are_written_without_nan",
        f"{CORE}/test_records_runtime.py::test_a_record_survives_its_file_and_nan_becomes_null",
    ),
    56: (
        "NaN logits count as wrong and are reported.",
        f"{M}/test_classification.py::test_nan_logits_are_wrong_and_counted",
        f"{E}/test_evaluate_ood.py::test_nan_logits_are_wrong_and_reported",
    ),
    57: (
        "Tables of several classes under one name follow the published ones and list what is unmapped.",
        f"{D}/test_ood_sets.py::test_many_to_one_tables",
        f"{D}/test_modelvshuman.py::test_category_table",
        f"{D}/test_ood_sets.py::test_thousand_class_sets",
    ),
    58: (
        "Without all severities the mean corruption error is refused, and the partial table is kept.",
        f"{M}/test_classification.py::test_corruption_error",
        f"{E}/test_corruptions.py::test_a_missing_severity_refuses_mce_and_keeps_the_partial_table",
    ),
    59: (
        "Ties in the best classes and empty bins of the calibration are defined.",
        f"{M}/test_classification.py::test_ties",
        f"{M}/test_classification.py::test_ece_by_hand",
        f"{M}/test_classification.py::test_ece_confidence_on_an_edge_and_one",
    ),
    # checkpoints
    60: (
        "A training that is killed at any instant resumes to the same bits.",
        f"{T}/test_interruptions.py::test_a_kill_at_any_call_of_a_save_loses_at_most_that_save_and_resumes_to_the_bit",
        f"{T}/test_interruptions.py::test_one_hundred_kills_at_random_instants_resume_to_the_bit",
    ),
    61: (
        "A full disk leaves the old checkpoint and names the bytes that are needed.",
        f"{T}/test_checkpoint.py::test_a_full_disk_leaves_the_old_checkpoint_and_nothing_half_written",
        f"{T}/test_checkpoint.py::test_a_disk_that_is_too_full_is_seen_before_anything_is_written",
        f"{T}/test_loop.py::test_a_disk_that_fills_up_leaves_the_last_checkpoint_to_resume_from",
    ),
    62: (
        "Tensors are on disk before the manifest that promises them.",
        f"{T}/test_checkpoint.py::test_the_tensors_are_on_disk_before_the_manifest_has_its_name",
    ),
    63: (
        "No random state can be missing: each step seeds its own, and cut moments are refused.",
        f"{T}/test_loop.py::test_a_loss_that_draws_from_the_global_generators_resumes_to_the_bit",
        f"{T}/test_other_shapes.py::test_a_training_checkpoint",
    ),
    64: (
        "A training that stopped within an epoch goes on with the same batches and ends with the same bits.",
        f"{T}/test_loop.py::test_resume_gives_the_same_bits",
        f"{T}/test_loop.py::test_every_step_resumes_to_the_bit",
        f"{T}/test_loop.py::test_an_epoch_visits_every_row_once_in_batches_of_nearly_equal_size",
    ),
    65: (
        "With another number of processes the rows are the same and the loss differs by rounding only.",
        f"{T}/test_interruptions.py::test_another_number_of_processes_sees_the_same_rows_and_loses_only_bits",
        f"{T}/test_interruptions.py::test_fewer_stimuli_a_batch_than_processes_are_refused",
    ),
    66: (
        "Another number of threads, build or processor is noted as not bitwise.",
        f"{T}/test_loop.py::test_another_thread_count_is_noted",
        f"{T}/test_loop.py::test_another_build_or_processor_is_noted",
    ),
    67: (
        "Changed choices or data are refused unless they are allowed by name.",
        f"{T}/test_loop.py::test_another_choice_is_refused_unless_allowed",
        f"{T}/test_loop.py::test_another_architecture_or_other_data_are_refused",
        f"{T}/test_checkpoint.py::test_changes_are_listed_and_can_be_allowed",
    ),
    68: (
        "An old checkpoint is deleted only when the new one is there.",
        f"{T}/test_loop.py::test_old_checkpoints_go_only_after_the_new_one_is_there",
    ),
    69: (
        "A second process on a run's folder is refused and told who works there.",
        f"{T}/test_loop.py::test_a_second_process_is_refused_and_told_who_works",
        f"{CORE}/test_files_config_registry.py::test_a_second_process_learns_who_holds_the_lock",
    ),
    70: (
        "Steps and not clocks decide; folders may move; read-only ones are refused.",
        f"{T}/test_checkpoint.py::test_a_checkpoint_without_manifest_does_not_exist_and_steps_not_clocks_decide",
        f"{T}/test_loop.py::test_a_moved_folder_resumes_to_the_same_bits",
        f"{T}/test_loop.py::test_a_folder_that_cannot_be_written_is_refused",
    ),
    71: (
        "A stop signal finishes the step, saves and ends with its code; a second one ends at once.",
        f"{T}/test_loop.py::test_a_signal_finishes_the_step_saves_and_a_fresh_process_resumes_to_the_bit",
        f"{T}/test_loop.py::test_a_second_signal_ends_the_process_at_once",
    ),
    72: (
        "When one of two processes dies the other ends, and a restart resumes.",
        f"{T}/test_interruptions.py::test_when_one_of_two_processes_dies_the_other_ends_and_a_restart_resumes",
    ),
    # runs of notebooks
    73: (
        "A notebook that ends itself early is a failure.",
        f"{R}/test_runs_execute.py::test_a_bad_run_is_never_counted_as_success",
    ),
    74: (
        "An unknown parameter or a notebook without parameters is refused before a kernel starts.",
        f"{R}/test_runs_execute.py::test_bad_parameters_are_refused_before_a_kernel_starts",
        f"{R}/test_runs_execute.py::test_a_notebook_that_cannot_run_is_refused_within_a_second",
    ),
    75: (
        "Parameters of a wrong type, not finite or out of range are refused.",
        f"{R}/test_runs_execute.py::test_bad_parameters_are_refused_before_a_kernel_starts",
    ),
    76: (
        "A parameter that looks like code reaches the notebook as text.",
        f"{R}/test_runs_execute.py::test_a_good_run_is_ok_then_skipped_then_stale",
    ),
    77: (
        "A cell that hangs is interrupted, then killed, and the notebook is kept as far as it came.",
        f"{R}/test_runs_execute.py::test_a_bad_run_is_never_counted_as_success",
    ),
    78: (
        "A kernel that is killed is noticed within five seconds, with its cell and its memory.",
        f"{R}/test_runs_execute.py::test_a_dead_kernel_is_noticed_within_five_seconds",
        f"{R}/test_runs_execute.py::test_a_bad_run_is_never_counted_as_success",
    ),
    79: (
        "No kernel is left ten seconds after the runner or its worker died.",
        f"{R}/test_runs_execute.py::test_no_kernel_is_left_after_ten_seconds_whoever_dies",
    ),
    80: (
        "Long output is cut with a pointer to the log, which has a limit, too.",
        f"{R}/test_runs_execute.py::test_long_output_is_capped_with_a_pointer_to_the_log",
        f"{R}/test_runs_execute.py::test_the_log_has_a_limit_too",
    ),
    81: (
        "An executed notebook has its name only when complete; its folder is made or refused first.",
        f"{R}/test_runs_execute.py::test_no_kernel_is_left_after_ten_seconds_whoever_dies",
        f"{R}/test_runs_execute.py::test_a_folder_that_cannot_be_made_or_written_is_refused",
    ),
    82: (
        "A damaged or old notebook, or one for another kernel, is refused within a second.",
        f"{R}/test_damaged_notebooks.py::test_a_damaged_notebook_is_refused",
        f"{R}/test_damaged_notebooks.py::test_what_is_no_notebook_is_refused",
        f"{R}/test_damaged_notebooks.py::test_cut_and_mutated_notebooks_are_read_or_refused",
        f"{R}/test_runs_execute.py::test_a_notebook_that_cannot_run_is_refused_within_a_second",
    ),
    83: (
        "The project's notebooks start no shell commands.",
        "tests/notebooks/test_notebook_hygiene.py::test_a_notebook_is_tidy",
        "tests/notebooks/test_notebook_hygiene.py::test_the_rules_find_a_planted_fault",
    ),
    84: (
        "A notebook that runs again gives the same files, times apart.",
        "tests/notebooks/test_execute.py::test_running_a_notebook_again_gives_the_same_files_times_apart",
    ),
    # what is served or shown
    85: (
        "The notebook server is reachable from this machine only, with a token; elsewhere it wants a password.",
        "tests/test_environment.py::test_jupyter_answers_nobody_without_the_token",
        "tests/test_environment.py::test_jupyter_does_not_start_with_an_empty_token",
        f"{R}/test_lab_addresses.py::test_the_machine_itself_needs_a_token_only",
        f"{R}/test_lab_addresses.py::test_other_machines_need_a_password",
        f"{R}/test_lab_addresses.py::test_make_lab_refuses_an_open_address_with_a_token_only",
        f"{R}/test_lab_addresses.py::test_make_lab_refuses_root_unless_it_is_told_otherwise",
    ),
    86: (
        "Hostile names and labels show as text in an exported page, which can run and fetch nothing.",
        f"{R}/test_export.py::test_a_hostile_file_name_and_class_label_show_as_text",
        f"{R}/test_export.py::test_hostile_prose_and_titles_show_as_text",
        f"{R}/test_export.py::test_figures_tables_prose_and_folded_code_are_there",
    ),
    87: (
        "Only real PNG pictures are kept in an exported page.",
        f"{R}/test_export.py::test_what_is_no_picture_is_replaced_by_its_text",
    ),
    88: (
        "Secrets and home folders leave neither with a page nor with an executed notebook.",
        f"{R}/test_export.py::test_secrets_and_home_paths_do_not_leave",
        f"{R}/test_runs_execute.py::test_a_good_run_is_ok_then_skipped_then_stale",
    ),
    89: (
        "Work on local data connects to nothing; what is fetched is pinned by its checksum.",
        "tests/test_no_connection.py::test_training_and_evaluating_on_a_generated_study_connects_to_nothing",
        "tests/test_no_connection.py::test_the_guard_sees_an_attempt",
        f"{D}/test_fetch.py::test_wrong_checksum_leaves_nothing",
        f"{D}/test_demo.py::test_an_interrupted_official_archive_is_gone_on_from_and_never_taken_for_a_whole_one",
    ),
    90: (
        "No source file calls what runs code from data.",
        "tests/test_forbidden.py::test_no_forbidden_call",
        "tests/test_forbidden.py::test_the_patterns_find_what_they_name",
    ),
    # limits of the machine
    91: (
        "Data beyond the memory are refused with a number, or mapped from the disk.",
        f"{T}/test_train_fusion.py::test_data_that_do_not_fit_into_memory_are_refused_or_mapped",
        f"{D}/test_containers.py::test_an_array_larger_than_the_free_memory_is_refused_before_it_is_read",
        f"{CORE}/test_records_runtime.py::test_free_memory_knows_the_limit_of_a_process_and_of_its_control_group",
    ),
    92: (
        "Tokens beyond the disk or the limit of the store are refused before anything is written.",
        f"{B}/test_store.py::test_beyond_the_limit_or_the_disk_nothing_is_begun",
        f"{B}/test_store.py::test_the_expected_size_is_said_before_and_true",
    ),
    93: (
        "A full GPU halves the micro-batch and keeps batch and gradient.",
        "tests/gpu/test_gpu_training.py::test_a_full_memory_halves_the_batch_and_keeps_the_gradient",
        "tests/gpu/test_gpu_training.py::test_a_full_memory_halves_the_batch_of_the_extraction",
        f"{T}/test_loop.py::test_out_of_memory_halves_the_micro_batch_and_keeps_the_gradient",
        f"{B}/test_store.py::test_a_full_memory_halves_the_batch",
    ),
    94: (
        "Where bfloat16 does not pay, float32 is used and said; where it is used, tokens stay close.",
        f"{T}/test_encoder_runs.py::test_bfloat16_is_used_where_it_pays_and_said_where_it_does_not",
        f"{B}/test_dinov2.py::test_auto_takes_float32_where_bfloat16_does_not_pay",
        f"{B}/test_vit.py::test_bfloat16_stays_close_to_float32",
    ),
    95: (
        "Few open files suffice, no shared memory is needed, and too low a limit is told with a remedy.",
        "tests/test_open_files.py::test_a_study_of_many_images_needs_few_open_files",
        "tests/test_open_files.py::test_worker_processes_share_no_memory_through_files",
        f"{CORE}/test_system_errors.py::test_limits_of_a_real_process_are_told",
    ),
}

KINDS = {
    "a folder is believed by its name and not by its content": (
        ("bmfl_lab/data/class_folders.py", "scan"),
        (f"{D}/test_folder_rules.py", "OTHERS"),
    ),
    "a run takes things from its surroundings": (
        ("bmfl_lab/runs/execute.py", "INHERITED"),
        (f"{R}/test_runs_execute.py", "SURROUNDINGS"),
    ),
    "two runs of one folder disturb each other": (
        ("bmfl_lab/runs/execute.py", "execute_one"),
        (f"{R}/test_only_own_processes_end.py", "STATES"),
    ),
    "a container points elsewhere or lies about its size": (
        ("bmfl_lab/data/containers.py", "check_size"),
        (f"{D}/test_containers.py", "HOSTILE_NPZ"),
    ),
    "an error of the system reaches the user bare": (
        ("bmfl_lab/files.py", "system_errors"),
        (f"{CORE}/test_system_errors.py", "OPERATIONS"),
    ),
    "a remedy cannot help": (
        ("bmfl_lab/errors.py", "message"),
        ("tests/remedies/test_names.py", "CANNOT_HELP"),
    ),
    "a value is checked late or never": (
        ("bmfl_lab/runs/spec.py", "load_spec"),
        (f"{R}/test_late_validation.py", "REFUSED"),
    ),
    "a name becomes markup": (
        ("bmfl_lab/markup.py", "plotly_text"),
        (f"{CORE}/test_markup.py", "NAMES"),
    ),
    "a promised layout is not read": (
        ("bmfl_lab/data/study.py", "register_reader"),
        (f"{D}/test_distributed_layouts.py", "LAYOUTS"),
    ),
    "a server opens itself": (
        ("widgets/lab.py", "TokenRequired"),
        (f"{R}/test_lab_addresses.py", "EMPTY"),
    ),
}
"""Kinds of fault: file and name of the rule that closes each, and the table that tests it."""
