//! `nodelet logs`

use clap::Args;
use futures::AsyncReadExt;

use super::session::Session;
use super::{Outcome, Usage};

#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// The workload, or KIND/NAME
    workload: String,
    /// The container, if there are several
    #[arg(short, long)]
    container: Option<String>,
    /// Go on with what is written from now on
    #[arg(short, long)]
    follow: bool,
    /// The last lines only
    #[arg(long, value_name = "LINES")]
    tail: Option<u64>,
    /// What was written within this time, such as 30s, 5m, 2h
    #[arg(long, value_name = "DURATION", value_parser = seconds)]
    since: Option<u64>,
    /// Of the container before the present one
    #[arg(short, long)]
    previous: bool,
    /// With the time of each line
    #[arg(long)]
    timestamps: bool,
}

pub(crate) async fn logs(args: &LogsArgs, session: &Session) -> anyhow::Result<Outcome> {
    let (kind, name) = match args.workload.split_once('/') {
        Some((kind, name)) => (session.kinds.named(kind)?, name),
        None => (session.kinds.named("workloads")?, args.workload.as_str()),
    };
    if kind.kind != "Workload" && kind.kind != "Pod" {
        return Err(Usage(format!("a {} has no log", kind.kind)).into());
    }
    if args.container.is_none() {
        let object = session.object(kind, name).await?;
        let containers = object["spec"]["containers"].as_array().into_iter().flatten();
        let names: Vec<&str> = containers.filter_map(|container| container["name"].as_str()).collect();
        if names.len() > 1 {
            session.output.note(&format!("of container {}; there are also {} (-c)", names[0], names[1..].join(", ")));
        }
    }
    let number = |value: Option<u64>| value.map(|value| value.to_string());
    let flag = |value: bool| value.then(|| "true".to_owned());
    let query: Vec<(&str, String)> = [
        ("container", args.container.clone()),
        ("follow", flag(args.follow)),
        ("tailLines", number(args.tail)),
        ("sinceSeconds", number(args.since)),
        ("previous", flag(args.previous)),
        ("timestamps", flag(args.timestamps)),
    ]
    .into_iter()
    .filter_map(|(key, value)| Some((key, value?)))
    .collect();
    let query: Vec<(&str, &str)> = query.iter().map(|(key, value)| (*key, value.as_str())).collect();
    let path = format!("{}/log", kind.path(Some(&session.namespace), Some(name)));
    let mut body = std::pin::pin!(session.client.stream(&path, &query).await?);
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = body.read(&mut buffer).await?;
        if read == 0 {
            return Ok(Outcome::Done);
        }
        session.output.bytes(&buffer[..read])?;
    }
}

/// `90`, `30s`, `5m`, `2h`, `1d`, `1h30m`
pub(crate) fn seconds(text: &str) -> Result<u64, String> {
    let fault = || format!("{text:?} is not a duration; expected such as 30s, 5m, 2h");
    if let Ok(seconds) = text.parse() {
        return Ok(seconds);
    }
    let mut total = 0_u64;
    let mut number = String::new();
    for c in text.chars() {
        if c.is_ascii_digit() {
            number.push(c);
            continue;
        }
        let unit = match c {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86_400,
            _ => return Err(fault()),
        };
        let value: u64 = number.parse().map_err(|_| fault())?;
        total = value.checked_mul(unit).and_then(|value| total.checked_add(value)).ok_or_else(fault)?;
        number.clear();
    }
    if number.is_empty() && !text.is_empty() { Ok(total) } else { Err(fault()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, expected) in [
            ("90", Some(90)),
            ("30s", Some(30)),
            ("1h30m", Some(5400)),
            ("2d", Some(172_800)),
            ("", None),
            ("5", Some(5)),
            ("5x", None),
            ("m", None),
            ("1h5", None),
            ("99999999999999999999d", None),
        ] {
            assert_eq!(seconds(text).ok(), expected, "{text}");
        }
    }
}
