// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A table for people.

/// Columns that line up. The last one may be as long as it is.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table of the functions of a reset group.
    pub(crate) fn of_functions() -> Self {
        Self::new(&[
            "BDF",
            "in this VM as",
            "IOMMU group",
            "VFIO driver (cdev)",
            "kernel driver",
            "owned how",
            "blocks reset?",
            "what to do",
        ])
    }

    /// The cell for a function's driver if it is one of VFIO, which gives the function a cdev.
    pub(crate) fn vfio_driver(driver: &str, cdev: &str) -> String {
        if cdev.is_empty() { String::new() } else { format!("{driver} ({cdev})") }
    }

    /// The cell for a function's driver if it is another one.
    pub(crate) fn kernel_driver(driver: &str, cdev: &str) -> String {
        if cdev.is_empty() { driver.to_owned() } else { String::new() }
    }

    pub(crate) fn new(titles: &[&str]) -> Self {
        Self { rows: vec![titles.iter().map(ToString::to_string).collect()] }
    }

    pub(crate) fn row(&mut self, cells: &[String]) {
        self.rows
            .push(cells.iter().map(|cell| if cell.is_empty() { "-".into() } else { cell.clone() }).collect());
    }

    pub(crate) fn text(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let length = |cell: &String| cell.chars().count();
        let width =
            |column| self.rows.iter().filter_map(|row| row.get(column)).map(length).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let line = |row: &Vec<String>| {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
        };
        self.rows.iter().map(line).collect()
    }
}
