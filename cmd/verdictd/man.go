package main

import (
	"errors"
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
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if info, err := os.Stat(args[0]); err != nil || !info.IsDir() {
				return badInput(errors.Join(fmt.Errorf("%s is not a directory (make it first)", args[0]), err))
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
