//! The faults of a consumer, by the numbers that tests name them by.

use crate::list::{Fault, but, shown};

pub(crate) const KAFKA: &[Fault] = &[
    shown(
        48,
        "a crash with later messages settled and an earlier one not",
        "only what lies before the earlier one is committed; the inbox absorbs the rest",
    ),
    shown(
        49,
        "a partition is taken away with work under way",
        "the contiguous part that is done is committed, and never more",
    ),
    shown(
        50,
        "a partition is lost unnoticed, and a handler ends late",
        "its settlement is dropped, and its effect is one",
    ),
    shown(
        51,
        "a partition goes and comes back at once",
        "what was read before is not taken for new, and nothing is skipped",
    ),
    shown(52, "a restart at the committed offset", "neither one too many nor one too few"),
    shown(
        53,
        "a fetch fails, or a topic is gone for a moment",
        "the position does not move past what was not handled",
    ),
    shown(54, "a handler slower than `max.poll.interval.ms`", "the member stays in its group"),
    shown(
        55,
        "a message that always fails",
        "its attempts are bounded, it becomes a letter, and its partition goes on",
    ),
    shown(56, "the dead letter cannot be published", "its message is neither settled nor lost"),
    shown(
        57,
        "a crash after a letter was published",
        "the letter is the same one, and its message is settled at last",
    ),
    shown(
        58,
        "the dead-letter topic is missing or too small",
        "it is made, or the start fails with a remedy",
    ),
    shown(
        59,
        "a message waits for its next attempt",
        "those of its key wait behind it, those of others do not",
    ),
    shown(60, "the committed offset is gone", "the source stops, unless it was told where to go on"),
    shown(
        61,
        "offsets without messages: compaction, markers, aborted transactions",
        "the watermark passes them",
    ),
    but(
        62,
        "the work out of order outgrows the metadata of a commit",
        "cannot be: no metadata is needed",
        "Only the watermark is committed; what was done above it is in the inbox.",
    ),
    shown(
        63,
        "a slow key with very many messages behind it",
        "memory is bounded by the window; the partition waits, the others go on",
    ),
    shown(64, "the client is configured to commit by itself", "refused at the start"),
    shown(65, "a storm of rebalances", "nothing is lost, nothing applied twice, order kept"),
];

pub(crate) const RABBITMQ: &[Fault] = &[
    shown(66, "an acknowledgement for a channel that is gone", "dropped here; its message comes again"),
    shown(67, "the broker cancels the consumer", "it subscribes again"),
    but(
        68,
        "a handler outlasts the broker's `consumer_timeout`",
        "the message comes again and the inbox absorbs it, as after any closed channel",
        "Brokers of the tests have one timeout for all queues and look at it once a minute.",
    ),
    but(
        69,
        "the delivery limit of a quorum queue",
        "queues that Backstop declares have none in reach; attempts are counted by the consumer",
        "Queues that others have declared with a low limit may lose messages to it in a storm of crashes.",
    ),
    shown(70, "one acknowledgement for several deliveries", "never sent: what was not settled comes again"),
    shown(71, "a prefetch of zero", "refused with a remedy"),
    shown(72, "deliveries that are given back again and again", "with a pause, not in a busy loop"),
    shown(
        73,
        "the dead-letter exchange is gone or routes nowhere",
        "the letter is not confirmed, and its message stays",
    ),
    but(
        74,
        "the broker drops messages that circle through dead-letter exchanges",
        "cannot be: letters are published anew, and attempts are counted in the held table",
        "Nothing is passed through a dead-letter exchange by rejecting it.",
    ),
];

pub(crate) const HANDLERS: &[Fault] = &[
    shown(75, "a crash between the commit and the settling", "redelivered, absorbed, settled"),
    shown(76, "one message at two instances at once", "one effect; the other one learns of it"),
    shown(
        77,
        "one message of a shared transaction fails",
        "it is charged alone, its neighbours are applied once",
    ),
    shown(78, "a duplicate inside a shared transaction", "one effect"),
    but(
        79,
        "a redelivery after the inbox has forgotten the message",
        "rows are kept for as long as configured; redrives of older letters are told",
        "A message that the broker delivers again after that time is applied again: nothing is left to know it by.",
    ),
    shown(80, "a redrive of what was handled meanwhile", "no second effect"),
    shown(81, "two consumers see one id", "each has its own inbox rows"),
    but(
        82,
        "a producer uses an id twice for different contents",
        "the second message counts as a duplicate",
        "Contents are not compared.",
    ),
    shown(
        83,
        "a message without an id",
        "told by its coordinates, made a letter, or the consumer stops: as configured; never a random id",
    ),
    shown(
        84,
        "a handler panics, hangs or ignores its cancellation",
        "a failure like others; a late commit is impossible",
    ),
    shown(85, "the connection is lost inside COMMIT", "the inbox decides what has happened"),
    shown(86, "a handler emits messages and then fails", "none of them is sent"),
    shown(87, "the inbox database is down", "nothing is charged, nothing becomes a letter, everything waits"),
    shown(
        88,
        "a shutdown while messages wait for their next attempt",
        "their time and their attempts are in the database",
    ),
    shown(
        89,
        "a message that cannot be decoded",
        "a letter with the original bytes and headers, without a single attempt",
    ),
    shown(90, "a redrive beside live traffic", "rate and order are kept"),
];
