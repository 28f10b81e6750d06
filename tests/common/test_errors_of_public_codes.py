"""The errors that the public codes of the field ship with, and the tests that show we do not share them."""

from __future__ import annotations

import re

import pytest

from tests.e2e.terminal import ROOT

ERRORS = {
    # FairTune, at 76539bc
    "stopping saves nothing: candidates report after their last epoch": [
        "test_fairtune::test_a_candidate_is_judged_before_the_next_rung_is_spent",
        "test_fairtune::test_twenty_seven_candidates_cost_three_full_runs",
    ],
    "class weights are computed and left out of the search's loss": [
        "test_fairtune::test_search_and_final_run_have_the_same_class_weights_of_mean_one",
        "test_every_parameter_acts::test_a_parameter_acts",
    ],
    "metrics are averaged over mini-batches": [
        "test_fairtune::test_values_are_of_the_pooled_validation_patients",
        "test_objective::test_a_federated_value_is_the_pooled_one_and_no_mean_of_sites",
    ],
    "the guard against NaN never acts": [
        "test_objective::test_groups_too_small_for_an_auc_fall_back_to_the_loss_which_never_is_nan"
    ],
    "the largest loss mixes sums of one batch with counts of many": [
        "test_objective::test_group_objectives_by_hand",
        "test_objective::test_auc_accuracy_and_loss_by_hand",
    ],
    "the searched learning rate is lost": ["test_fairtune::test_the_trials_learning_rate_reaches_the_final_run"],
    "a collapsed model looks best": [
        "test_fairtune::test_a_collapsed_model_never_wins",
        "test_fairtune::test_where_all_collapse_the_vendors_model_stays",
    ],
    "a weighted mean that is not divided by the weights changes the learning rate": [
        "test_fairtune::test_search_and_final_run_have_the_same_class_weights_of_mean_one",
        "test_fairtune::test_a_trial_with_learning_rate_lr_is_plain_descent_with_lr",
    ],
    "the searcher has no seed": ["test_searcher::test_the_same_seed_and_sums_propose_the_same_and_others_differ"],
    "full fine-tuning is listed and crashes": ["test_fairtune::test_all_norm_attention_and_head_alone_are_in_the_pool"],
    # Fisher information, SWiFT's and third parties'
    "the gradient of a batch is squared": [
        "test_zhang_zhou::test_importance_is_a_sum_over_patients_and_never_over_batches"
    ],
    "hospitals' own means are averaged": [
        "test_zhang_zhou::test_a_group_is_divided_by_its_own_patients_over_all_hospitals"
    ],
    "averaging both factors is not averaging their product": [
        "test_zhang_zhou::test_the_mean_of_the_hospitals_factors_is_the_mean_of_their_products"
    ],
    "a head of rank one is compressed": ["test_zhang_zhou::test_layers_that_do_not_fit_are_refused"],
    # BMFT, at 70c83e4
    "a sigmoid is taken twice": [
        "test_bmft::test_impair_is_the_bias_loss_alone_on_scores_that_are_sigmoids_of_the_logit_once"
    ],
    "a tensor of one value gives NaN and an empty mask": [
        "test_bmft::test_a_constant_tensor_gives_numbers_and_spares_the_other_tensors"
    ],
    "a mask by layer frees every layer": ["test_bmft::test_a_mask_by_tensor_keeps_what_the_percentile_says"],
    "decay shrinks what is masked, and the head": [
        "test_bmft::test_what_is_masked_neither_moves_nor_decays_and_the_head_rests"
    ],
    "an absent cell has mean 0": ["test_bmft::test_a_site_without_a_group_is_no_group_of_mean_zero"],
    "a rate that always comes out as 95": ["test_bmft::test_the_percentile_says_how_many_are_free"],
    "the average precision is that of decisions": [
        "test_fairness_auprc::test_with_a_bin_for_each_score_it_equals_scikit_learn"
    ],
    # SWiFT, at 937e9fd
    "a batch without a group has a bias gradient": [
        "test_swift::test_a_batch_without_a_group_gives_no_bias_gradient_here_and_a_false_one_there"
    ],
    "gradients of the head pile up over batches": ["test_swift::test_head_gradients_do_not_pile_up_over_batches"],
    # GroupDRO and MEDFAIR
    "a group that a batch lacks has loss 0, and its weight falls": [
        "test_group_dro::test_an_empty_cell_takes_no_part_and_its_loss_of_0_moves_nothing",
        "test_group_dro::test_losses_are_those_of_all_patients_whoever_lacks_a_group",
    ],
    "the sweep over GroupDRO's parameters changes nothing": ["test_every_parameter_acts::test_a_parameter_acts"],
    "a gap of mini-batches, averaged, is biased upward; names of gaps differ between codes": [
        "test_fairness_rates::test_gaps_equal_fairlearn",
        "test_fairness_federated::test_figures_of_summed_tables_are_the_pooled_figures",
    ],
    "opposite gaps cancel in a signed sum": [
        "test_fairness_rates::test_opposite_gaps_do_not_cancel",
        "test_cells::test_the_golden_example",
    ],
    # FairPrune's traps
    "biases and normalisations are pruned": [
        "test_fairprune::test_a_run_prunes_the_smallest_scores_of_the_patients_own_curvatures"
    ],
    "who is better off is assumed": [
        "test_fairprune::test_the_better_off_group_is_the_one_of_the_larger_auc_on_validation"
    ],
    # FairFed, q-FFL
    "weights that start at n_k need another beta": ["test_fairfed::test_the_weights_by_hand"],
    "the loss of the trained model in the place of the received one": ["test_q_ffl::test_a_round_by_hand"],
    # FedFB
    "the constant is added once a hospital": [
        "test_fedfb::test_the_multipliers_do_not_depend_on_the_number_of_hospitals"
    ],
    "the first group's bound holds for every group": ["test_fedfb::test_each_group_is_held_in_its_own_bounds"],
    "the average leaves the first hospital's weight out": [
        "test_fedfb::test_every_hospital_has_its_weight_in_the_average"
    ],
}


@pytest.mark.parametrize("error", ERRORS)
def test_there_is_a_test_that_we_do_not_share_it(error: str) -> None:
    assert ERRORS[error]
    for shown in ERRORS[error]:
        file, _, name = shown.partition("::")
        text = (ROOT / "tests" / "common" / f"{file}.py").read_text()
        if name:
            assert re.search(rf"^def {name}\(", text, re.M), shown
