//! `completions`, `man` and `config schema`: what the program says about itself, for shells, readers and editors.

use std::io::{self, Write};

use clap::{Command, CommandFactory};
use clap_complete::Shell;

use crate::cli::Cli;
use crate::config::SCHEMA;
use crate::exit::{Exit, Failure};
use crate::output;

pub(super) fn completions(shell: Shell) -> Result<Exit, Failure> {
    let mut command = Cli::command();
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut script);
    print(&script)
}

/// One page with every command, because the commands are read together.
pub(super) fn man() -> Result<Exit, Failure> {
    let mut page = Vec::new();
    let mut command = Cli::command();
    command.build();
    clap_mangen::Man::new(command.clone()).render(&mut page)?;
    subcommands(&command, &mut page)?;
    print(&page)
}

fn subcommands(command: &Command, page: &mut Vec<u8>) -> io::Result<()> {
    for inner in command.get_subcommands().filter(|inner| inner.get_name() != "help" && !inner.is_hide_set())
    {
        let name = inner.get_bin_name().unwrap_or_else(|| inner.get_name()).to_uppercase();
        writeln!(page, ".SH {name}")?;
        // The options of every command are at the top of the page.
        let own = inner.clone().mut_args(|arg| if arg.is_global_set() { arg.hide(true) } else { arg });
        let man = clap_mangen::Man::new(own);
        man.render_description_section(&mut *page)?;
        man.render_synopsis_section(&mut *page)?;
        if inner.get_arguments().next().is_some() {
            man.render_options_section(&mut *page)?;
        }
        subcommands(inner, page)?;
    }
    Ok(())
}

pub(super) fn schema() -> Result<Exit, Failure> {
    output::line(SCHEMA.trim_end())?;
    Ok(Exit::Ok)
}

fn print(text: &[u8]) -> Result<Exit, Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text)?;
    out.flush()?;
    Ok(Exit::Ok)
}
