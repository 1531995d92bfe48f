//! The list of cases, once.

/// Makes one test of every case for databases; see [`conformance`](crate::conformance).
///
/// Takes the type of a [`StoreHarness`](crate::conformance::StoreHarness); for a database that keeps no ledger,
/// followed by `, without ledger`.
#[macro_export]
macro_rules! store_conformance {
    ($harness:ty) => {
        $crate::store_conformance!($harness, without ledger);
        $crate::conformance_tests! {
            $harness, store, StoreHarness;
            ledger: [
                record_twice_is_once,
                twice_in_one_batch_is_once,
                a_letter_survives,
                a_bare_letter_survives,
                an_odd_envelope_survives,
                a_body_is_replaced_where_it_is_the_same,
                filters_narrow,
                pages_follow_each_other,
                mark_moves_from_the_stated_status,
                one_hand_moves_a_letter,
                the_history_tells,
                failed_again_supersedes,
                failed_again_after_a_lost_confirmation,
                a_late_letter_supersedes_nothing,
                the_ledger_has_leases,
                an_owner_leaves_a_note,
            ],
            letters: [
                every_field_narrows,
                pages_are_in_the_order_of_death,
                a_page_after_a_letter_that_is_gone_is_an_error,
                groups_add_up,
                minutes_count_what_died_of_late,
                a_hold_forbids_to_discard,
                changes_are_made_in_batches,
                receipts_resolve,
                a_skip_spares_what_is_on_hold,
                what_is_told_is_told_of_what_is_meant,
                an_edited_copy_takes_a_letters_place,
                a_discarded_letter_takes_receipts,
                the_latest_report_is_kept,
                reports_are_kept_for_a_while,
            ],
            died_again: [
                a_closed_letter_opens_again,
                what_died_again_is_found_anew,
                an_old_copy_opens_nothing,
                a_copy_from_the_future_opens_nothing,
                a_hold_keeps_the_evidence,
                what_is_open_stays_as_it_is,
                every_death_counts,
                one_letter_stands_for_a_message,
                a_copy_is_closed_by_what_opens_again,
                a_redrive_leaves_out_what_died_again,
                a_later_death_has_answers_of_its_own,
                a_later_death_ignores_earlier_answers,
                an_edit_opens_nothing,
            ],
            expiry: [
                what_is_over_is_found_and_purged,
                a_hold_forbids_to_purge,
                a_purge_leaves_redrives_alone,
            ],
            redrives: [
                a_plan_adds_up,
                the_letters_are_frozen,
                letters_are_claimed_in_order,
                a_stale_engine_takes_nothing,
                letters_are_settled,
                outcomes_reach_the_redrive,
                what_is_being_sent_outlives_its_redrive,
                a_letter_stands_as_its_last_redrive_says,
                what_was_not_sent_waits_for_nothing,
                the_rate_changes_while_it_runs,
                claims_at_once_share,
            ],
            audit: [
                the_audit_log_is_read_by_pages,
                what_ended_hides_its_beginning,
            ],
        }
    };
    ($harness:ty, without ledger) => {
        $crate::conformance_tests! {
            $harness, store, StoreHarness;
            inbox: [
                fresh_then_duplicate,
                same_id_of_two_sources,
                consumers_do_not_see_each_other,
                effects_commit_with_the_inbox_row,
                rollback_leaves_nothing,
                a_dropped_transaction_leaves_nothing,
                dropped_transactions_do_not_leak,
                a_swallowed_failure_is_rolled_back,
                a_swallowed_failure_is_never_half,
                a_raw_commit_is_found_out,
                a_raw_commit_does_not_hurt_the_next,
                prune_keeps_the_young,
                prune_keeps_to_its_limit,
                message_keys_are_bytes,
                odd_message_keys_are_stored,
                a_complete_database_is_ready,
            ],
            inbox_instances: [
                another_instance_sees_the_duplicate,
                a_waiting_instance_learns_of_the_commit,
                a_waiting_instance_takes_over,
                an_instance_steps_aside,
                eight_instances_apply_it_once,
            ],
            group: [
                a_group_commits_together,
                a_group_rolls_back_together,
                a_dropped_group_leaves_nothing,
                duplicates_of_a_group_are_told,
                held_keys_of_a_group_are_told,
                a_group_of_duplicates,
                groups_of_consumers_are_apart,
                withdrawn_messages_are_fresh_again,
                handled_messages_can_be_withdrawn,
                a_group_steps_aside,
                instances_with_the_same_groups_apply_them_once,
                a_swallowed_failure_dooms_the_group,
                the_end_of_a_group_is_seen_between_handlers,
                a_raw_commit_in_a_group_is_found_out,
            ],
            held: [
                hold_holds_the_key,
                held_wins_over_duplicate,
                hold_twice_is_one_row,
                a_handled_message_is_not_held,
                append_needs_a_held_key,
                append_twice_is_one_row,
                a_handled_message_is_not_appended,
                a_key_runs_in_order,
                a_follower_does_not_overtake,
                a_head_falls_due,
                the_longest_due_goes_first,
                finish_commits_everything,
                a_claimed_head_is_skipped,
                an_append_while_the_head_works,
                a_dropped_claim_comes_again,
                a_rolled_back_claim_comes_again,
                a_handled_head_is_shown_as_such,
                the_summary_counts,
                consumers_hold_their_own,
            ],
            held_attempts: [
                undo_then_reschedule,
                undo_keeps_the_claim,
                undo_mends_a_failed_statement,
                undo_of_an_ended_transaction_fails,
                a_quarantined_head_is_not_handled,
                a_head_that_is_not_condemned_is_not_given_up,
                a_rescheduled_head_waits,
                reschedule_without_a_claim,
                a_late_failure_after_a_success,
                a_late_failure_after_another,
                attempts_are_exact,
                many_instances_keep_the_order,
            ],
            held_run: [
                a_run_commits_together,
                a_run_rolls_back_together,
                a_run_that_dies_is_charged_to_each,
                a_run_that_is_cut_short_gives_back_the_rest,
                a_run_ends_before_what_is_to_run_alone,
                keys_share_a_run,
                runs_of_instances_are_apart,
                a_run_knows_what_was_handled,
            ],
            charges: [
                charges_are_counted_and_taken_back,
                charges_beyond_the_own_one_stay,
                charges_are_of_one_consumer_and_message,
                a_claim_that_is_lost_leaves_its_charge,
                a_run_that_ends_leaves_no_charge,
                a_charged_head_is_left_alone_for_a_while,
                an_acquitted_head_is_sound,
                a_charge_is_taken_back_alone,
                a_later_charge_of_a_head_stays,
                a_condemned_head_is_not_charged,
                a_redriven_message_begins_without_charges,
            ],
            import: [
                a_free_key_runs_at_once,
                a_held_key_comes_first,
                a_handled_message_is_not_imported,
                import_twice_is_one_row,
                what_runs_at_once_was_stored,
                a_live_message_waits_behind,
                messages_are_taken_in_together,
                live_messages_are_appended_together,
                many_importers_leave_no_key_without_a_head,
            ],
            quarantined: [
                a_quarantined_head_keeps_its_place,
                what_has_changed_is_not_quarantined,
                a_redrive_takes_its_place,
                an_older_redrive_changes_nothing,
                a_forged_generation_stops_no_redrive,
                a_redrive_may_come_before_its_letter_is_confirmed,
                released_keys_go_on,
                skipped_and_resolved_messages_are_never_run,
                what_is_still_tried_is_not_released,
                what_is_not_held_can_be_skipped,
                an_ending_is_for_its_generation,
                what_is_at_work_is_busy,
                held_keys_are_listed,
                followers_begin_to_fail_by_themselves,
                a_release_forgets_no_follower,
            ],
            owed: [
                a_receipt_is_owed_from_the_commit_on,
                a_rollback_owes_nothing,
                a_held_message_owes_with_its_end,
                nothing_untrue_is_owed,
                paid_receipts_are_forgotten,
                instances_pay_for_those_that_are_gone,
                odd_receipts_survive,
            ],
            envelopes: [
                a_plain_message,
                a_queue_as_origin,
                a_header_without_a_value,
                headers_of_one_name,
                binary_header_values,
                a_tombstone,
                an_empty_body,
                a_binary_body,
                a_body_of_one_mebibyte,
                no_key,
                an_empty_key,
                a_binary_key,
                an_odd_error_text,
            ],
            outbox: [
                rows_come_in_order,
                rows_come_once,
                reset_begins_again,
                readers_are_independent,
                a_rolled_back_row_never_comes,
                a_row_committed_late_is_not_lost,
                many_writers_lose_nothing,
                deleted_rows_are_gone,
                rows_of_any_id_are_deleted,
                reads_keep_to_their_rows,
                reads_keep_to_their_bytes,
                a_destination_is_read_again,
                a_key_is_read_again,
                the_status_counts,
                a_message_survives,
                absent_fields_stay_absent,
                unreadable_rows_are_reported,
            ],
            outbox_fencing: [
                bury_moves_exactly_those,
                buried_rows_are_listed,
                bury_twice_is_once,
                a_stale_owner_moves_nothing,
                an_old_token_moves_nothing,
                a_stale_owner_may_delete,
                a_row_under_an_old_number_stays,
            ],
            outbox_dead: [
                a_retried_row_comes_again,
                a_retried_message_survives,
                retry_twice_is_once,
                a_retried_row_dies_again,
                an_id_that_waits_already_is_no_hindrance,
                filters_narrow_dead_rows,
                dead_rows_move_in_batches,
                an_unreadable_row_stays_unreadable,
            ],
            scheduled: [
                a_due_row_is_promoted,
                a_row_waits_for_its_time,
                a_rolled_back_schedule_never_comes,
                rows_are_promoted_in_the_order_of_their_times,
                promotion_keeps_to_its_rows,
                promotion_keeps_to_its_bytes,
                promoted_at_once_is_promoted_once,
                a_stale_owner_promotes_nothing,
                a_scheduled_message_survives,
            ],
            lease: [
                the_holder_is_told,
                the_owner_is_heard,
                one_owner,
                renewal_keeps_the_token,
                renewal_prolongs,
                takeover_grows_the_token,
                release_lets_the_next_in,
                a_late_release_changes_nothing,
                names_are_independent,
                of_many_one_wins,
            ],
            schema: [
                every_step_is_applied,
                migrate_twice_is_once,
                steps_are_taken_back,
                two_at_once_are_safe,
                a_complete_schema_passes_the_check,
                a_missing_schema_is_named,
            ],
        }
    };
}

/// Makes one test of every case for brokers; see [`conformance`](crate::conformance).
///
/// Takes the type of a [`BrokerHarness`](crate::conformance::BrokerHarness).
#[macro_export]
macro_rules! broker_conformance {
    ($harness:ty) => {
        $crate::conformance_tests! {
            $harness, broker, BrokerHarness;
            source: [
                a_message_survives,
                headers_survive,
                repeated_headers_survive,
                null_headers_survive,
                a_tombstone_survives,
                bodies_survive,
                a_binary_key_survives,
                no_key_stays_none,
                no_id_is_never_made_up,
                keys_keep_their_order,
                next_is_cancel_safe,
                epochs_tell_stretches_apart,
                a_source_describes_itself,
                forged_headers_do_not_count,
            ],
            settling: [
                settled_does_not_come_again,
                untouched_comes_again,
                dropped_comes_again,
                a_crash_loses_nothing,
                a_gap_is_not_skipped,
                a_closed_gap_is_forgotten,
                the_bound_holds,
                nothing_begins_after_closing,
                two_members_share,
                a_leaving_member_hands_over,
                order_survives_a_change_of_members,
            ],
            sink: [
                the_binding_fits,
                many_at_once_arrive,
                a_missing_destination_is_told,
                a_large_message_is_told,
            ],
            publisher: [
                every_ticket_is_confirmed_once,
                each_key_keeps_its_order,
                a_full_pipeline_refuses,
                waiting_is_cancel_safe,
                what_is_abandoned_is_confirmed_and_the_publisher_works_on,
                a_large_message_fails_alone,
                a_missing_destination_fails_alone,
                a_probe_finds_what_is_missing,
            ],
            dead_letters: [
                a_letter_keeps_the_original,
                a_tombstones_letter_is_one,
                an_empty_body_stays,
                a_repeated_quarantine_is_the_same_letter,
                prepare_twice_is_fine,
            ],
            door: [
                a_redriven_message_comes_back,
                our_identity_counts_at_the_door,
                a_bare_message_at_the_door,
                a_foreign_origin_at_the_door_is_not_believed,
                the_door_is_settled_too,
                live_and_door_come_together,
            ],
        }
    };
}

/// Writes the tests; called by the two macros above.
#[doc(hidden)]
#[macro_export]
macro_rules! conformance_tests {
    ($harness:ty, $suite:ident, $trait:ident; $($group:ident: [$($case:ident,)*],)*) => {
        $(
            mod $group {
                use super::*;
                $(
                    #[test]
                    fn $case() {
                        $crate::conformance::run(stringify!($case), async {
                            let harness = <$harness as $crate::conformance::$trait>::fresh().await;
                            $crate::conformance::$suite::$group::$case(&harness).await;
                            $crate::conformance::$trait::clean_up(harness).await;
                        });
                    }
                )*
            }
        )*
    };
}

#[cfg(test)]
mod tests {
    /// A case that is written and not listed would never run.
    #[test]
    fn every_case_is_listed() {
        let listed = include_str!("cases.rs");
        let files = [
            include_str!("store/inbox.rs"),
            include_str!("store/inbox_instances.rs"),
            include_str!("store/group.rs"),
            include_str!("store/held.rs"),
            include_str!("store/held_attempts.rs"),
            include_str!("store/held_run.rs"),
            include_str!("store/charges.rs"),
            include_str!("store/import.rs"),
            include_str!("store/quarantined.rs"),
            include_str!("store/owed.rs"),
            include_str!("store/envelopes.rs"),
            include_str!("store/outbox.rs"),
            include_str!("store/outbox_fencing.rs"),
            include_str!("store/outbox_dead.rs"),
            include_str!("store/scheduled.rs"),
            include_str!("store/lease.rs"),
            include_str!("store/ledger.rs"),
            include_str!("store/letters.rs"),
            include_str!("store/died_again.rs"),
            include_str!("store/expiry.rs"),
            include_str!("store/redrives.rs"),
            include_str!("store/audit.rs"),
            include_str!("store/schema.rs"),
            include_str!("broker/source.rs"),
            include_str!("broker/settling.rs"),
            include_str!("broker/sink.rs"),
            include_str!("broker/publisher.rs"),
            include_str!("broker/dead_letters.rs"),
            include_str!("broker/door.rs"),
        ];
        for file in files {
            let cases = file.lines().filter_map(|line| line.strip_prefix("pub async fn ")?.split_once('<'));
            for (case, _) in cases {
                assert!(listed.contains(&format!(" {case},\n")), "{case} is not listed");
            }
        }
    }
}
