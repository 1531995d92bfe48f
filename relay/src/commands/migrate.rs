//! `migrate`

use backstop_core::schema::{Migration, Schema};
use serde::Serialize;

use crate::cli::{Migrate, MigrateCommand};
use crate::commands::{Context, database};
use crate::database::Database;
use crate::exit::{Exit, Failure};
use crate::output;

/// One step of one database, and what became of it.
#[derive(Debug, Serialize)]
struct Step {
    database: String,
    version: i64,
    name: &'static str,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    sql: Option<&'static str>,
}

pub(super) async fn run(context: &Context, migrate: Migrate) -> Result<Exit, Failure> {
    let direction = migrate.direction.unwrap_or(MigrateCommand::Up);
    let mut steps = Vec::new();
    for config in context.config.databases() {
        let opened = match direction {
            MigrateCommand::Up if !migrate.dry_run => Database::create(config).await,
            _ if migrate.dry_run => Database::look(config).await,
            MigrateCommand::Status => Database::look(config).await,
            _ => Database::open(config).await,
        };
        let opened = opened.map_err(database)?;
        let mut schemas = vec![opened.schema.clone()];
        for outbox in
            context.config.outbox.iter().filter(|outbox| context.config.database_of(outbox) == config)
        {
            schemas.extend(opened.layout_of(outbox).map_err(database)?);
        }
        for schema in schemas {
            let done = match direction {
                MigrateCommand::Up => up(&*schema, migrate.dry_run).await?,
                MigrateCommand::Down { to } => down(&*schema, to, migrate.dry_run).await?,
                MigrateCommand::Status => status(&*schema).await?,
            };
            steps.extend(done.into_iter().map(|step| Step { database: config.url.to_string(), ..step }));
        }
    }
    print(context, &steps)?;
    Ok(Exit::Ok)
}

fn step(migration: &Migration, state: &'static str, sql: Option<&'static str>) -> Step {
    Step { database: String::new(), version: migration.version, name: migration.name, state, sql }
}

async fn up(schema: &dyn Schema, dry_run: bool) -> Result<Vec<Step>, Failure> {
    if dry_run {
        let applied = schema.applied().await.map_err(database)?;
        let missing = schema.migrations().iter().filter(|step| !applied.contains(&step.version));
        return Ok(missing
            .map(|migration| step(migration, "would be applied", Some(migration.up)))
            .collect());
    }
    let done = schema.migrate().await.map_err(database)?;
    let done = schema.migrations().iter().filter(|step| done.contains(&step.version));
    Ok(done.map(|migration| step(migration, "applied", None)).collect())
}

async fn down(schema: &dyn Schema, to: i64, dry_run: bool) -> Result<Vec<Step>, Failure> {
    let steps = schema.migrations().iter().rev();
    if dry_run {
        let applied = schema.applied().await.map_err(database)?;
        let above = steps.filter(|step| step.version > to && applied.contains(&step.version));
        return Ok(above
            .map(|migration| step(migration, "would be taken back", Some(migration.down)))
            .collect());
    }
    let done = schema.revert(to).await.map_err(database)?;
    let done = steps.filter(|step| done.contains(&step.version));
    Ok(done.map(|migration| step(migration, "taken back", None)).collect())
}

async fn status(schema: &dyn Schema) -> Result<Vec<Step>, Failure> {
    let applied = schema.applied().await.map_err(database)?;
    let state = |version| if applied.contains(&version) { "applied" } else { "missing" };
    Ok(schema.migrations().iter().map(|migration| step(migration, state(migration.version), None)).collect())
}

fn print(context: &Context, steps: &[Step]) -> Result<(), Failure> {
    if context.is_json() {
        return Ok(output::json(&steps)?);
    }
    if steps.is_empty() {
        return Ok(output::line("nothing to do")?);
    }
    let row = |step: &Step| {
        vec![step.database.clone(), step.version.to_string(), step.name.to_owned(), step.state.to_owned()]
    };
    output::table(&["DATABASE", "VERSION", "NAME", "STATE"], steps.iter().map(row))?;
    if steps.iter().any(|step| step.sql.is_some()) {
        output::line(
            "\n-- written with the standard names; schema and prefix of the configuration take their place",
        )?;
    }
    for (step, sql) in steps.iter().filter_map(|step| Some((step, step.sql?))) {
        output::line(format!("\n-- {} {}: {}\n{}", step.version, step.name, step.state, sql.trim_end()))?;
    }
    Ok(())
}
