import PocketCore
import SwiftUI

/// What the export measured, as the bundle carries it.
struct CertificateView: View {
    let manifest: Manifest
    let target: PocketCore.Target

    var body: some View {
        List {
            Section("Bundle") {
                LabeledContent("Recipe", value: manifest.recipe.name)
                LabeledContent("Context", value: "\(manifest.context) tokens")
                LabeledContent("Licence", value: manifest.licence ?? "not stated")
                LabeledContent("pocketlm", value: manifest.pocketlm)
            }
            if let certificate = manifest.certificate.targets[target.rawValue] {
                TargetSections(certificate: certificate)
            } else {
                Text("The export measured nothing for \(target.title).")
            }
            if !manifest.notes.isEmpty { LinesSection(title: "Notes of the export", lines: manifest.notes) }
        }
    }
}

private struct TargetSections: View {
    let certificate: TargetCertificate

    var body: some View {
        Section("Verdict") {
            Label(
                certificate.passed ? "Passed at export" : "Failed at export",
                systemImage: certificate.passed ? "checkmark.seal.fill" : "xmark.seal.fill")
            LabeledContent("Weights", value: certificate.weightsIdentical ? "identical" : "different")
            LabeledContent("Matrices compared", value: "\(certificate.tensorsChecked)")
            LabeledContent("Judged by", value: certificate.evaluatedBy)
        }
        Section("Errors, means over \(certificate.positions) tokens") {
            ForEach(certificate.errors, id: \.name) { error in
                LabeledContent(error.name) {
                    Text(figures(error.deviation))
                        .multilineTextAlignment(.trailing)
                        .monospacedDigit()
                }
                .accessibilityElement(children: .combine)
            }
        }
        if !certificate.failures.isEmpty { LinesSection(title: "Failures", lines: certificate.failures) }
        if !certificate.notes.isEmpty { LinesSection(title: "Notes", lines: certificate.notes) }
        if !certificate.lint.isEmpty { LinesSection(title: "May be slow", lines: certificate.lint) }
    }
}

/// A deviation's figures, a line each.
private func figures(_ deviation: Deviation) -> String {
    let optional = [
        deviation.noiseFloorKL.map { "noise floor \(scientific($0))" },
        deviation.perplexityRatio.map { "perplexity x \(scientific($0))" },
    ]
    let lines = ["KL \(scientific(deviation.kl))", "same top token \(percent(deviation.top1))"]
    return (lines + optional.compactMap { $0 }).joined(separator: "\n")
}

private struct LinesSection: View {
    let title: String
    let lines: [String]

    var body: some View {
        Section(title) {
            ForEach(lines, id: \.self) { Text($0).font(.footnote) }
        }
    }
}

/// A share for people.
func percent(_ share: Double) -> String {
    share.formatted(.percent.precision(.fractionLength(1)))
}
