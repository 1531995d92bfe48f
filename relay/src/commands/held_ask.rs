//! `held ask`

use backstop_core::ledger::{Letter, LetterFilter};
use serde_json::json;

use crate::ask::{self, NotAsked};
use crate::audit::Action;
use crate::broker;
use crate::cli::HeldAsk;
use crate::commands::{Context, confirm, database};
use crate::exit::{Exit, Failure};
use crate::output::{self, counted, or_dash};

pub(super) async fn run(context: &Context, args: &HeldAsk) -> Result<Exit, Failure> {
    let sink = broker::sink(context.broker()?).map_err(|error| Failure::broker(&error))?;
    let (ledger, ending) = (context.ledger().await?, args.ending.ending());
    let filter = LetterFilter::of_ids(&args.letters);
    let most = u32::try_from(args.letters.len()).unwrap_or(u32::MAX);
    let letters = ledger.list(&filter, None, most).await.map_err(database)?;
    if let Some(missing) = args.letters.iter().find(|id| !letters.iter().any(|letter| letter.id == **id)) {
        let what = format!("the ledger has no letter {missing}");
        return Err(Failure::new(Exit::Failed, what, "look for it with dead-letters list --status all"));
    }
    for letter in &letters {
        if let Some(why) = ask::unfit(letter, ending) {
            let what = format!("{}: {why}", letter.id);
            return Err(Failure::new(Exit::Failed, what, "nobody was asked; leave it out"));
        }
    }
    if !context.is_json() {
        print(&letters)?;
    }
    if args.dry_run {
        return report(context, args, &[]);
    }
    if !args.yes {
        let question = format!("ask for {ending} of {}?", counted(letters.len() as u64, "message"));
        confirm(&question, "nobody was asked")?;
    }
    let (what, choice) = (format!("held ask {ending}"), args.letters.join(" "));
    let action = Action::on_letters(&ledger, &what, &choice, Some(&args.because));
    action.begins(letters.len() as u64).await?;
    for (asked, letter) in letters.iter().enumerate() {
        if let Err(error) = ask::ask(&*ledger, &sink, letter, ending, &args.because).await {
            action.failed(asked as u64, &error.to_string()).await;
            return Err(failure(&error));
        }
    }
    action.ended(letters.len() as u64).await;
    report(context, args, &letters)
}

fn print(letters: &[Letter]) -> std::io::Result<()> {
    let row = |letter: &Letter| {
        vec![
            letter.id.clone(),
            or_dash(letter.consumer.as_deref()),
            or_dash(letter.message_key.as_deref()),
            or_dash(letter.sound_door()),
            or_dash(letter.error.as_deref()),
        ]
    };
    output::table(&["LETTER", "CONSUMER", "MESSAGE", "DOOR", "ERROR"], letters.iter().map(row))
}

fn report(context: &Context, args: &HeldAsk, asked: &[Letter]) -> Result<Exit, Failure> {
    let ids: Vec<&str> = asked.iter().map(|letter| letter.id.as_str()).collect();
    let ending = args.ending.ending();
    if context.is_json() {
        let document = json!({ "ending": ending.as_str(), "asked": ids, "because": args.because });
        output::json(&document)?;
    } else if !asked.is_empty() {
        let asked = counted(asked.len() as u64, "message");
        output::line(format!(
            "asked for {ending} of {asked}; pending until the receipt is in `dead-letters show`"
        ))?;
    }
    Ok(Exit::Ok)
}

fn failure(error: &NotAsked) -> Failure {
    match error {
        NotAsked::Unfit(why) => Failure::new(Exit::Failed, *why, "look at it with dead-letters show"),
        NotAsked::Ledger(error) => Failure::database(error),
        NotAsked::Refused(error) => Failure::publish(error),
        NotAsked::Unknown(cause) => {
            let mut failure = Failure::publish(cause);
            failure.add(error.to_string(), "look at it with dead-letters show before you ask again");
            failure
        }
    }
}
