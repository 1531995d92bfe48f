//! Rules of this relay: how each stands, which letters it would send, and letting one fire again.

use backstop_core::ledger::Verdict;
use backstop_core::report::{cut, escaped};

use super::letters::{no_reason, reason};
use super::trail::Deed;
use super::{Caller, Desk, Kind, Page, Trouble, in_time};
use crate::config::RuleConfig;
use crate::rules::{self, Look, NoRule, RESUME, View};

/// What shows whether a rule was resumed.
const LOOK: &str = "the rules";

impl Desk {
    /// How many rules somebody wrote.
    pub(crate) fn rules_written(&self) -> usize {
        self.letters.rules.len()
    }

    /// How each rule stands, in the order of the configuration.
    pub(crate) async fn rules(&self) -> Result<Vec<View<'_>>, Trouble> {
        if self.letters.rules.is_empty() {
            return Ok(Vec::new());
        }
        let look = self.look().await?;
        in_time(look.views(self.bounds.judged)).await
    }

    /// How one rule stands.
    pub(crate) async fn rule(&self, name: &str) -> Result<View<'_>, Trouble> {
        let rule = self.named(name)?;
        let look = self.look().await?;
        in_time(look.view(rule, self.bounds.judged)).await
    }

    async fn look(&self) -> Result<Look<'_>, Trouble> {
        in_time(Look::at(self.ledger().await?, &self.letters)).await
    }

    fn named(&self, name: &str) -> Result<&RuleConfig, Trouble> {
        let none = |NoRule { what, hint }| Trouble::new(Kind::Missing, what, hint);
        rules::named(&self.letters, name).map_err(none)
    }

    /// Letters that a rule could send now.
    pub(crate) async fn letters_of_rule(
        &self,
        view: &View<'_>,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page, Trouble> {
        let (filter, guard) = (&view.wanted.filter, &view.wanted.guard);
        self.letters_of_plan(filter, guard, Verdict::Send, after, limit).await
    }

    /// Lets a rule fire again that rests. The entry in the audit log is what the relay goes by, so that the rule is looked
    /// at once more.
    pub(crate) async fn resume_rule(
        &self,
        who: &Caller,
        name: &str,
        because: &str,
    ) -> Result<View<'_>, Trouble> {
        let because = reason(Some(because));
        let mut deed = Deed::new(who, RESUME, escaped(&cut(name, 64)), because.as_deref());
        let resting = match &because {
            Some(_) => self.resting(name).await,
            None => Err(no_reason()),
        };
        // The relay looks at the latest entries about the redrive: what is refused must not crowd them out.
        if let (true, Ok((redrive, _))) = (who.operates(), &resting) {
            deed = deed.about(redrive);
        }
        self.recorded(&deed, async { resting }, |(_, letters)| Some(*letters)).await?;
        let view = self.rule(name).await.map_err(|trouble| trouble.unknown(LOOK))?;
        let rests = |what| Trouble::new(Kind::Unreachable, what, "look at the relay's log, and try again");
        view.is_resumed().map_err(rests)?;
        Ok(view)
    }

    /// The redrive after whose bad end a rule rests, and how many letters it would send now.
    async fn resting(&self, name: &str) -> Result<(String, u64), Trouble> {
        let view = self.rule(name).await?;
        let awake = |what| Trouble::new(Kind::Conflict, what, "look at how it stands");
        let redrive = view.rests_after().map_err(awake)?;
        Ok((redrive.to_owned(), view.takes.sent))
    }
}
