//! `nodelet edit`

use std::io::Write;

use anyhow::Context as _;
use clap::Args;

use super::output::yaml;
use super::session::Session;
use super::{Outcome, Usage, get};
use crate::manifest;

#[derive(Debug, Args)]
pub(crate) struct EditArgs {
    /// KIND NAME, or KIND/NAME
    #[arg(value_name = "KIND NAME", required = true)]
    words: Vec<String>,
}

pub(crate) async fn edit(args: &EditArgs, session: &Session) -> anyhow::Result<Outcome> {
    let named = session.named(&args.words)?;
    let [(kind, name)] = named.as_slice() else {
        return Err(Usage("name one object".to_owned()).into());
    };
    let object = get::presentable(session.object(kind, name).await?);
    let original = yaml(&object)?;
    let mut text = original.clone();
    loop {
        let edited = in_editor(&text).await?;
        let stripped: String =
            edited.lines().filter(|line| !line.starts_with('#')).fold(String::new(), |all, line| all + line + "\n");
        if stripped.trim().is_empty() || stripped == original {
            session.output.note("nothing changed");
            return Ok(Outcome::Done);
        }
        if edited == text && text != original {
            session.output.error("given up: the text was left as it was refused");
            return Ok(Outcome::Failed);
        }
        let manifest = manifest::parse("your edit", &stripped);
        let faults = match manifest.objects.as_slice() {
            [object] => match session.client.replace(kind, session.namespace_of(kind), name, &object.value).await {
                Ok(_) => {
                    session.output.line(format!("{}/{name} edited", kind.qualified()))?;
                    return Ok(Outcome::Done);
                }
                Err(error) => object.refusal(&error),
            },
            _ => manifest.faults,
        };
        text = faults.iter().map(|fault| format!("# {}\n", fault.to_string().replace('\n', " "))).collect::<String>()
            + &stripped;
    }
}

async fn in_editor(text: &str) -> anyhow::Result<String> {
    let editor = ["KUBE_EDITOR", "VISUAL", "EDITOR"]
        .iter()
        .find_map(|name| std::env::var(name).ok())
        .unwrap_or_else(|| "vi".to_owned());
    let path = std::env::temp_dir().join(format!("nodelet-edit-{}.yaml", uuid()));
    let mut file =
        std::fs::OpenOptions::new().write(true).create_new(true).open(&path).context("making a file to edit")?;
    file.write_all(text.as_bytes())?;
    drop(file);
    // Through the shell: the variable may hold arguments.
    let status = tokio::process::Command::new("sh")
        .arg("-c")
        .arg(format!("{editor} \"$1\""))
        .arg("sh")
        .arg(&path)
        .status()
        .await;
    let edited = std::fs::read_to_string(&path);
    let _ = std::fs::remove_file(&path);
    let status = status.with_context(|| format!("starting the editor {editor:?}"))?;
    anyhow::ensure!(status.success(), "the editor {editor:?} failed: {status}");
    edited.context("reading the edited file")
}

/// A name nobody else can guess or have.
fn uuid() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/uuid")
        .map_or_else(|_| std::process::id().to_string(), |id| id.trim().to_owned())
}
