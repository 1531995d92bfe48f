//! `replay`

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use backstop_core::{AdapterError, Destination};
use backstop_kafka::{KafkaSettings, ReadFrom};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::broker;
use crate::cli;
use crate::commands::{Context, confirm};
use crate::config::BrokerConfig;
use crate::exit::{Exit, Failure, with_cause};
use crate::output::{self, counted};
use crate::replay::state::{State, StateFile};
use crate::replay::{Replay, ReplayError, Target, parse_offsets};
use crate::supervise::until_signalled;

/// How often a terminal is told how it stands.
const TELL_EVERY: Duration = Duration::from_millis(200);

pub(super) async fn run(context: &Context, args: cli::Replay) -> Result<Exit, Failure> {
    let broker = context.broker()?;
    let BrokerConfig::Kafka(kafka) = broker else {
        return Err(usage(
            "a queue keeps nothing that could be read again",
            "replay needs a [broker] of kind \"kafka\"",
        ));
    };
    let (yes, dry_run, rate) = (args.yes, args.dry_run, args.rate);
    let settings = kafka.settings().client_id("backstop-relay");
    let opened = tokio::task::spawn_blocking(move || open(&settings, args)).await;
    let replay = opened.expect("opening does not panic, and is not cancelled")?.per_second(rate);
    let plan = replay.state().clone();
    let target = Destination::new(plan.target.topic(&plan.topic));
    if !context.is_json() {
        print_plan(&plan)?;
    }
    // A producer's first message would make a topic of a misspelt name, where brokers do that.
    let publisher = broker::publisher(broker).map_err(|error| Failure::broker(&error))?;
    if let Some(fault) = publisher.probe(&[target]).await.first() {
        return Err(Failure::publish(fault));
    }
    if dry_run || plan.messages_left() == 0 {
        if context.is_json() {
            output::json(&document(&plan))?;
        }
        return Ok(Exit::Ok);
    }
    if !yes {
        let count = counted(plan.messages_left(), "message");
        confirm(&format!("send up to {count}?"), "nothing was sent")?;
    }
    let sink = broker::sink(broker).map_err(|error| Failure::broker(&error))?;
    let stop = CancellationToken::new();
    let mut done = None;
    let mut progress = Progress::new(&plan, context.is_json());
    until_signalled(stop.clone(), async {
        done = Some(replay.run(&sink, &stop, |state| progress.show(state)).await);
        Ok(())
    })
    .await?;
    progress.end();
    let result = done.expect("the work ended without an error, so it left its outcome");
    finished(context, &result.map_err(failure)?)
}

/// The replay that the arguments ask for, or the one whose state is in the file.
fn open(settings: &KafkaSettings, args: cli::Replay) -> Result<Replay, Failure> {
    let from = from(&args)?;
    let target = target(&args)?;
    let file = args.state.map(StateFile::new);
    if let Some(file) = &file
        && let Some(state) = known(file)?
    {
        if (&state.topic, &state.target) != (&args.topic, &target) {
            let what = format!("{} holds the state of another replay", file.path().display());
            return Err(usage(&what, "name another file, or the topic and target that it was begun with"));
        }
        return Replay::resume(settings, state, file.clone()).map_err(refused);
    }
    let Some(from) = from else {
        return Err(usage(
            "where to begin is not said",
            "add --from-beginning, --from-time or --from-offset",
        ));
    };
    Replay::begin(settings, &args.topic, &from, target, file).map_err(refused)
}

fn known(file: &StateFile) -> Result<Option<State>, Failure> {
    file.read().map_err(|error| {
        let what = format!("cannot read {}: {}", file.path().display(), with_cause(&error));
        Failure::new(Exit::Failed, what, "name the state file of a replay, or one that is not there yet")
    })
}

fn from(args: &cli::Replay) -> Result<Option<ReadFrom>, Failure> {
    if !args.from_offset.is_empty() {
        let offsets = parse_offsets(&args.from_offset);
        let bad =
            |text: String| usage(&format!("{text:?} is no offset"), "write PARTITION:OFFSET, such as 0:1200");
        return offsets.map(|offsets| Some(ReadFrom::Offsets(offsets))).map_err(bad);
    }
    Ok(args.from_time.map(ReadFrom::Time).or(args.from_beginning.then_some(ReadFrom::Beginning)))
}

fn target(args: &cli::Replay) -> Result<Target, Failure> {
    let target = match (&args.to_door, &args.to) {
        (Some(group), _) => Target::Door { group: group.clone(), again: args.again },
        (None, Some(topic)) => Target::Topic(topic.clone()),
        (None, None) => unreachable!("the command line asks for one of them"),
    };
    if target.topic(&args.topic) == args.topic {
        return Err(usage(
            "a topic cannot be replayed to itself: every group would see everything twice",
            "send to the door of the one group that is to see it: --to-door GROUP",
        ));
    }
    Ok(target)
}

fn usage(what: &str, hint: &str) -> Failure {
    Failure::new(Exit::Usage, what, hint)
}

fn refused(error: AdapterError) -> Failure {
    Failure::broker(&error)
}

fn failure(error: ReplayError) -> Failure {
    match error {
        ReplayError::Read(error) => Failure::broker(&error),
        ReplayError::Refused(error) => Failure::publish(&error),
        ReplayError::State(error) => {
            let what = format!("the state cannot be written: {}", with_cause(&error));
            Failure::new(Exit::Failed, what, "check the folder of --state")
        }
    }
}

fn print_plan(plan: &State) -> io::Result<()> {
    let row = |(partition, range): (&i32, &std::ops::Range<i64>)| {
        vec![
            format!("{}/{partition}", plan.topic),
            range.start.to_string(),
            range.end.to_string(),
            (range.end - range.start).to_string(),
        ]
    };
    output::table(&["PARTITION", "FROM", "BEFORE", "AT MOST"], plan.left.iter().map(row))?;
    let (left, target) = (counted(plan.messages_left(), "message"), plan.target.topic(&plan.topic));
    let before = if plan.sent > 0 { format!("; {} were sent before", plan.sent) } else { String::new() };
    output::line(format!("\nup to {left} to {target}{before}"))
}

fn document(state: &State) -> serde_json::Value {
    json!({
        "replay": state,
        "to": state.target.topic(&state.topic),
        "left": state.messages_left(),
    })
}

fn finished(context: &Context, state: &State) -> Result<Exit, Failure> {
    if context.is_json() {
        output::json(&document(state))?;
    } else {
        output::line(format!("{} sent", counted(state.sent, "message")))?;
    }
    if state.messages_left() > 0 {
        let what = format!("stopped by a signal; up to {} were not sent", state.messages_left());
        return Err(Failure::new(
            Exit::Failed,
            what,
            "run the command again with the same --state for the rest",
        ));
    }
    Ok(Exit::Ok)
}

/// One line on a terminal that tells how it stands.
struct Progress {
    began: Instant,
    told: Option<Instant>,
    before: u64,
    silent: bool,
}

impl Progress {
    fn new(plan: &State, json: bool) -> Self {
        let silent = json || !io::stderr().is_terminal();
        Self { began: Instant::now(), told: None, before: plan.sent, silent }
    }

    fn show(&mut self, state: &State) {
        if self.silent || self.told.is_some_and(|told| told.elapsed() < TELL_EVERY) {
            return;
        }
        self.told = Some(Instant::now());
        let rate = (state.sent - self.before) as f64 / self.began.elapsed().as_secs_f64().max(0.001);
        let left = Duration::from_secs((state.messages_left() as f64 / rate.max(0.1)) as u64);
        let left = humantime::format_duration(left);
        // A terminal that is gone need not be told.
        let _ = write!(io::stderr(), "\r\x1b[K{} sent, {rate:.0}/s, at most {left} left", state.sent);
    }

    fn end(&self) {
        if self.told.is_some() {
            let _ = writeln!(io::stderr());
        }
    }
}
