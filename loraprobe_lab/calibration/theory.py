"""What theory says of features before any case is seen: in which direction each has to push.

More of what adding the effects would give, of what a specialist keeps when it is shrunk, of known
hops, of room above base and singles and of a router that listens to the right adapter can only
help; an unequal norm, opposed signs, damage to what others know, cross-talk and a template that is
foreign to the partner can only hurt. A feature that is not named may push either way.
"""

from __future__ import annotations

from collections.abc import Mapping

HELPS = """
    expected_score expected_gain expected_gain_plain expected_gain_steps
    additive_score additive_gain additive_gain_plain additive_gain_steps
    additive_gain_any_gate additive_gain_every_gate routed_gain
    expected_retention_min expected_retention_mean own_answer_kept_min
    shrunk_retention_min shrunk_retention_mean shrunk_chain shrunk_chain_room
    hop_weakest hop_chain hop_chain_room hop_adapter_and_base
    ceiling specialist_gap specialist_least_gain off_task_change off_task_worst
    gate_needed_min gate_needed_mean gate_agreement_min gate_agreement_beyond
"""
HURTS = """
    base_score best_single_score norm_log_ratio sign_conflict hop_spoiled
    hidden_crosstalk_max hidden_crosstalk_mean
    template_loss_max template_loss_mean format_loss_max format_loss_mean
"""
SIGNS: Mapping[str, int] = dict.fromkeys(HELPS.split(), 1) | dict.fromkeys(HURTS.split(), -1)
