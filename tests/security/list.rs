//! The cases, by the numbers that the names of tests begin with.

/// What somebody may do to Backstop.
pub(crate) struct Case {
    pub(crate) number: u8,
    pub(crate) what: &'static str,
    pub(crate) must_hold: &'static str,
    /// What no test shows, and why.
    pub(crate) not_shown: Option<&'static str>,
}

const fn shown(number: u8, what: &'static str, must_hold: &'static str) -> Case {
    Case { number, what, must_hold, not_shown: None }
}

const fn but(number: u8, what: &'static str, must_hold: &'static str, not_shown: &'static str) -> Case {
    Case { number, what, must_hold, not_shown: Some(not_shown) }
}

const CONSUMER: &str = "This is about what a consumer receives, not about the relay.";
const CONSOLE: &str =
    "There is no console yet: the relay answers `/live`, `/ready` and `/metrics`, and changes nothing.";
const DRIVER: &str = "The drivers do it, within the connection's time limit; no server here can be made to.";

pub(crate) const CASES: [Case; 40] = [
    shown(1, "a header that is null, empty or missing", "it goes through as it is"),
    shown(
        2,
        "a header whose name is long, holds a NUL or is a broker's own, or whose value is no text",
        "it goes through, or its row is refused with a reason",
    ),
    shown(
        3,
        "headers by the thousand, of a megabyte, or several of one name",
        "as large as the broker takes; else the row is refused. Of a name that a JSON object holds twice the last counts",
    ),
    but(
        4,
        "forged headers of retries",
        "`backstop-*` headers count on Backstop's own destinations only",
        CONSUMER,
    ),
    but(5, "a header that chooses what is decoded", "only registered types are", CONSUMER),
    but(6, "a body larger than a consumer takes", "refused before it is decoded", CONSUMER),
    shown(7, "a body larger than the broker takes", "its row dies with a reason, and later ones go on"),
    but(
        8,
        "a dead letter that outgrows the broker's limit by its own explanation",
        "the explanation is cut, the original kept",
        CONSUMER,
    ),
    but(
        9,
        "a decompression bomb",
        "bounded",
        "The relay decompresses nothing that it publishes; dead letters that it reads are bounded by librdkafka's `receive.message.max.bytes`.",
    ),
    but(
        10,
        "JSON of any depth",
        "an error",
        "serde_json ends at 128 levels, which S3 shows for the headers of a row; bodies are not looked at.",
    ),
    but(11, "nested or long Protobuf, MessagePack or CBOR", "an error", "The relay decodes none."),
    but(
        12,
        "answers of a server that are damaged or end in the middle",
        "an error and another connection, in bounded time and without a panic",
        "An error code of Kafka that librdkafka does not know: rdkafka-sys 4.10 makes an enum of it unchecked, which ends the process. An answer of PostgreSQL that says it is ready and ends there: sqlx 0.9 panics, and the job that asked is ended. Over TLS no damaged byte gets so far; a relay that is started again goes on where it was.",
    ),
    but(13, "a database that asks for 2³¹ iterations of SCRAM", "bounded time", DRIVER),
    but(
        14,
        "lengths that wrap around in 32 bits",
        "refused",
        "No row of 4 GiB can be made: PostgreSQL and SQLite end at 1 GB. Lengths of our own are checked, and the lock file is held against advisories.",
    ),
    shown(15, "SQL in the names of tables and columns", "refused by an allow-list, and quoted"),
    shown(16, "SQL in a key, header, body or any other column", "it comes back to the letter"),
    shown(
        17,
        "a row that names what belongs to a broker, or headers that a broker acts on",
        "refused; such headers travel under another name. With `[[routes]]` and no `[broker]`, destinations are an allow-list",
    ),
    shown(
        18,
        "line ends and terminal sequences in keys, headers and errors",
        "escaped in the log, in errors and in tables",
    ),
    but(19, "HTML in a body", "shown as text", CONSOLE),
    shown(20, "a web page that calls the relay under a name of its own", "421, unless it has the token"),
    shown(
        21,
        "a web page that sends requests across sites",
        "nothing changes by any, and no answer can be read",
    ),
    shown(
        22,
        "an HTTP address that others reach, without a token",
        "the relay does not start, unless `insecure` says so",
    ),
    shown(23, "a wrong token, or many", "401, compared in constant time, slowly, never echoed"),
    but(24, "a query language", "there is none", CONSOLE),
    shown(25, "requests that are large, slow, or never read", "cut off, so that probes are answered"),
    shown(26, "paths that climb or are encoded oddly", "404"),
    but(27, "rights to read and to change", "separate", CONSOLE),
    shown(28, "passwords and tokens in logs, errors and output", "hidden wherever they come from"),
    but(
        29,
        "personal data in the ledger",
        "hidden until it is asked for",
        "`outbox dead show` and `dead-letters show` hide headers, key and body without `--reveal`, which their snapshots show.",
    ),
    but(
        30,
        "a server whose certificate is self-signed, expired or of another host, or with TLS before 1.2",
        "refused, and the error tells why",
        "Revoked certificates are not looked up by any of the drivers.",
    ),
    shown(
        31,
        "a client certificate that is missing, expired, a stranger's or not of its key",
        "a clear error",
    ),
    shown(
        32,
        "a server, or somebody before it, that says it has no TLS",
        "refused before a name or password is sent",
    ),
    shown(
        33,
        "a password or token without TLS",
        "never sent to another machine, unless `allow_plaintext` says so",
    ),
    but(
        34,
        "addresses of tokens from untrusted configuration",
        "only an operator writes it",
        "Tokens come from a file; what librdkafka's other properties reach is the operator's to choose.",
    ),
    but(35, "a SCRAM server that cannot prove itself", "refused", DRIVER),
    shown(36, "configuration that is huge, deep, endless or misspelled", "refused in words"),
    but(37, "a forged or long `traceparent`", "carried and not interpreted", CONSUMER),
    but(
        38,
        "labels of metrics from what rows hold",
        "bounded",
        "Labels are names of outboxes, which configuration gives.",
    ),
    but(39, "an AMQP table nested by the thousand", "an error", CONSUMER),
    but(
        40,
        "text that is reordered or hidden on a screen",
        "escaped",
        "S18 shows it for the log and for tables; there is no console and no CSV.",
    ),
];
