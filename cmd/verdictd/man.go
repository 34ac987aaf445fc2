package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

func newManCommand(e env) *cobra.Command {
	return &cobra.Command{
		Use:   "man DIRECTORY",
		Short: "Write the man pages into a directory",
		Long: `man writes a man page for each command into a directory, which must exist:

  verdictd man /usr/local/share/man/man1`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError(cmd, fmt.Errorf("want one directory to write to, got %d", len(args)))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if info, err := os.Stat(args[0]); err != nil || !info.IsDir() {
				return badInput(fmt.Errorf("%s: is not a directory (create it: mkdir -p %[1]s)", args[0]))
			}
			root := cmd.Root()
			root.DisableAutoGenTag = true // the date of the build says nothing
			err := doc.GenManTree(root, &doc.GenManHeader{Title: "VERDICTD", Section: "1", Source: "verdictd"}, args[0])
			if err != nil {
				return fmt.Errorf("write man pages: %w", err)
			}
			_, err = fmt.Fprintf(e.stderr, "wrote the man pages to %s\n", args[0])
			return err
		},
	}
}
