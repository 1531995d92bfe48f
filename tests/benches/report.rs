//! Figures beside their references, as a table and as JSON.

use serde_json::{Value, json};

/// One measured figure.
#[derive(Debug, Clone)]
pub(crate) struct Figure {
    name: String,
    value: f64,
    unit: &'static str,
    reference: Option<(String, f64)>,
    targets: Vec<Target>,
}

#[derive(Debug, Clone)]
enum Target {
    RatioAtLeast(f64),
    RatioAtMost(f64),
    AtLeast(f64),
    AtMost(f64),
}

impl Figure {
    /// A figure without reference and target.
    pub(crate) fn new(name: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self { name: name.into(), value, unit, reference: None, targets: Vec::new() }
    }

    /// The figure beside which it is read.
    pub(crate) fn beside(mut self, name: impl Into<String>, value: f64) -> Self {
        self.reference = Some((name.into(), value));
        self
    }

    /// It should reach this share of its reference.
    pub(crate) fn ratio_at_least(mut self, ratio: f64) -> Self {
        self.targets.push(Target::RatioAtLeast(ratio));
        self
    }

    /// It should not exceed this share of its reference.
    pub(crate) fn ratio_at_most(mut self, ratio: f64) -> Self {
        self.targets.push(Target::RatioAtMost(ratio));
        self
    }

    /// It should reach this.
    pub(crate) fn at_least(mut self, value: f64) -> Self {
        self.targets.push(Target::AtLeast(value));
        self
    }

    /// It should not exceed this.
    pub(crate) fn at_most(mut self, value: f64) -> Self {
        self.targets.push(Target::AtMost(value));
        self
    }

    fn ratio(&self) -> Option<f64> {
        self.reference.as_ref().map(|(_, value)| self.value / value)
    }

    fn is_short(&self) -> bool {
        !self.targets.iter().all(|target| match target {
            Target::RatioAtLeast(ratio) => self.ratio().is_some_and(|reached| reached >= *ratio),
            Target::RatioAtMost(ratio) => self.ratio().is_some_and(|reached| reached <= *ratio),
            Target::AtLeast(value) => self.value >= *value,
            Target::AtMost(value) => self.value <= *value,
        })
    }

    fn verdict(&self) -> &'static str {
        match (self.targets.is_empty(), self.is_short()) {
            (true, _) => "",
            (false, false) => "ok",
            (false, true) => "short",
        }
    }

    fn targets(&self) -> String {
        let texts = self.targets.iter().map(|target| match target {
            Target::RatioAtLeast(ratio) => format!(">= {ratio} x"),
            Target::RatioAtMost(ratio) => format!("<= {ratio} x"),
            Target::AtLeast(value) => format!(">= {}", amount(*value, self.unit)),
            Target::AtMost(value) => format!("<= {}", amount(*value, self.unit)),
        });
        texts.collect::<Vec<_>>().join(", ")
    }

    fn cells(&self) -> [String; 6] {
        let reference = self.reference.as_ref();
        [
            self.name.clone(),
            amount(self.value, self.unit),
            reference
                .map(|(name, value)| format!("{name}: {}", amount(*value, self.unit)))
                .unwrap_or_default(),
            self.ratio().map(|ratio| format!("{ratio:.2}")).unwrap_or_default(),
            self.targets(),
            self.verdict().to_owned(),
        ]
    }

    fn json(&self) -> Value {
        json!({
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "reference": self.reference.as_ref().map(|(name, value)| json!({ "name": name, "value": value })),
            "ratio": self.ratio(),
            "target": self.targets(),
            "verdict": self.verdict(),
        })
    }
}

/// Figures as a Markdown table with aligned columns.
pub(crate) fn table(figures: &[Figure]) -> String {
    let head = ["figure", "measured", "beside", "ratio", "target", ""].map(str::to_owned);
    let mut rows = vec![head];
    rows.extend(figures.iter().map(Figure::cells));
    let widths: Vec<usize> =
        (0..6).map(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0)).collect();
    let line = |row: &[String]| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "))
    };
    let rule: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
    let mut text = line(&rows[0]) + &line(&rule);
    rows[1..].iter().for_each(|row| text.push_str(&line(row)));
    text
}

/// Figures and machine as one line of JSON.
pub(crate) fn json(machine: &[(&'static str, String)], figures: &[Figure]) -> String {
    let machine: serde_json::Map<String, Value> =
        machine.iter().map(|(name, value)| ((*name).to_owned(), Value::from(value.as_str()))).collect();
    json!({ "machine": machine, "figures": figures.iter().map(Figure::json).collect::<Vec<_>>() }).to_string()
}

fn amount(value: f64, unit: &str) -> String {
    if unit.ends_with("/s") { format!("{} {unit}", thousands(value)) } else { format!("{value:.1} {unit}") }
}

fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// The median.
pub(crate) fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// The value below which that share of the values lies.
pub(crate) fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * share).round() as usize).copied().unwrap_or(f64::NAN)
}

/// One figure as a line.
pub(crate) fn line(figure: &Figure) -> String {
    let cells = figure.cells().into_iter().filter(|cell| !cell.is_empty());
    format!("  {}\n", cells.collect::<Vec<_>>().join(" · "))
}
