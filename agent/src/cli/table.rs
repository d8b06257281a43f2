//! Rows and columns, as the server or we made them.

use serde_json::Value;

use super::output::{Output, Paint};

/// Pads columns as kubectl does: three spaces between them, none after the last.
pub(crate) fn print(
    output: &Output,
    headers: &[String],
    rows: &[Vec<String>],
    with_headers: bool,
) -> anyhow::Result<()> {
    let mut widths: Vec<usize> = headers.iter().map(|header| header.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let render = |cells: &[String], paint: &dyn Fn(&str) -> String| {
        let mut line = String::new();
        for (i, (cell, width)) in cells.iter().zip(&widths).enumerate() {
            line.push_str(&paint(cell));
            if i + 1 < cells.len() {
                line.extend(std::iter::repeat_n(' ', width - cell.chars().count() + 3));
            }
        }
        line
    };
    if with_headers {
        output.line(render(headers, &|cell| output.paint(cell, Paint::Bold)))?;
    }
    for row in rows {
        output.line(render(row, &|cell| paint_state(output, cell)))?;
    }
    Ok(())
}

/// States that everybody looks for get the colour they deserve.
fn paint_state(output: &Output, cell: &str) -> String {
    let paint = match cell {
        "Running" | "Ready" | "True" | "InUse" | "Succeeded" | "Completed" => Paint::Good,
        "Failed" | "False" | "CrashLoopBackOff" | "Error" | "Warning" => Paint::Bad,
        "Pending" | "Unknown" | "Pulling" | "Resolving" | "Unpacking" => Paint::Warn,
        _ => return cell.to_owned(),
    };
    output.paint(cell, paint)
}

/// The columns of a `Table` that are wanted: their places and headers.
pub(crate) fn columns(table: &Value, wide: bool) -> Vec<(usize, String)> {
    let definitions = table["columnDefinitions"].as_array();
    definitions
        .into_iter()
        .flatten()
        .enumerate()
        .filter(|(_, column)| wide || column["priority"].as_i64().unwrap_or_default() == 0)
        .map(|(i, column)| (i, column["name"].as_str().unwrap_or_default().to_uppercase()))
        .collect()
}

/// One cell as text.
pub(crate) fn cell(value: &Value) -> String {
    match value {
        Value::Null => "<none>".to_owned(),
        Value::String(text) if text.is_empty() => "<none>".to_owned(),
        Value::String(text) => text.replace('\n', " "),
        Value::Array(items) => items.iter().map(cell).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

/// How long ago, as kubectl shows it: `45s`, `3m10s`, `5h`, `2d`.
pub(crate) fn age(seconds: i64) -> String {
    let seconds = seconds.max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let two = |large: i64, unit: &str, small: i64, small_unit: &str| {
        if small == 0 { format!("{large}{unit}") } else { format!("{large}{unit}{small}{small_unit}") }
    };
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 => two(minutes, "m", seconds % 60, "s"),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => two(hours, "h", minutes % 60, "m"),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => two(days, "d", hours % 24, "h"),
        691_200..63_072_000 => format!("{days}d"),
        _ => two(days / 365, "y", days % 365, "d"),
    }
}

/// [`age`] of a timestamp of an object.
pub(crate) fn age_of(time: &Value) -> String {
    let parsed = time.as_str().and_then(|time| time.parse::<jiff::Timestamp>().ok());
    parsed.map_or_else(|| "<unknown>".to_owned(), |time| age(jiff::Timestamp::now().as_second() - time.as_second()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_read_as_in_kubectl() {
        for (seconds, expected) in [
            (-5, "0s"),
            (119, "119s"),
            (125, "2m5s"),
            (180, "3m"),
            (3600, "60m"),
            (11_100, "3h5m"),
            (100_000, "27h"),
            (200_000, "2d7h"),
            (800_000, "9d"),
        ] {
            assert_eq!(age(seconds), expected);
        }
    }

    #[test]
    fn columns_are_padded() {
        let output = Output::buffer();
        let row = |cells: &[&str]| cells.iter().map(|cell| (*cell).to_owned()).collect::<Vec<_>>();
        print(&output, &row(&["NAME", "AGE"]), &[row(&["a-longer-name", "1s"]), row(&["b", "2m"])], true)
            .expect("prints");
        assert_eq!(output.take(), "NAME            AGE\na-longer-name   1s\nb               2m\n");
    }
}
